"""What the files of ``recipes/`` must agree on, beyond the schema of each."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_fleet.catalog import Catalog, SizedClass, in_range
from vllm_fleet.errors import FleetError
from vllm_fleet.resolve import Question, resolve, selects
from vllm_fleet.schema import Engine, Install, Model, Profile


def faults(catalog: Catalog) -> Iterator[FleetError]:
    """Every disagreement: names that do not exist, rules that never hold, combinations that do not resolve."""
    for engine in catalog.engines.values():
        yield from _engine(catalog, engine)
    for model in catalog.models.values():
        yield from _model(catalog, model)


def _engine(catalog: Catalog, engine: Engine) -> Iterator[FleetError]:
    document = catalog.documents[engine.id]
    lock = catalog.lock_file(engine)
    if lock and not lock.is_file():
        yield document.error(("wheel", "lock"), f"there is no recipes/engines/{lock.name}", "correct the name")
    try:
        catalog.names(engine)
    except FleetError as fault:
        yield document.error(("names",), f"{fault.file}: {fault.message}", fault.hint)


def _model(catalog: Catalog, model: Model) -> Iterator[FleetError]:
    document = catalog.documents[model.name]
    for name in model.encodings:
        if name not in catalog.encodings.encodings:
            yield document.error(("encodings",), f"{name!r} is not in recipes/encodings.yml", "add it there")
    usable: list[tuple[SizedClass, Engine, Install]] = []
    for index, entry in enumerate(model.support):
        for family in entry.host_class:
            if family not in catalog.classes:
                yield document.error(("support", index), f"there is no host class {family!r}", "correct the name")
        try:
            engines = [engine for engine in catalog.engines.values() if in_range(engine.release, entry.engine)]
        except FleetError as fault:
            yield document.error(("support", index, "engine"), fault.message, fault.hint)
            continue
        if not engines:
            yield document.error(("support", index, "engine"), f"no engine lies in {entry.engine!r}", "correct it")
        usable += [
            (sized, engine, "wheel")
            for sized in catalog.sized_classes()
            for engine in engines
            if sized.family.name in entry.host_class and sized.family.accelerator == engine.accelerator
        ]
    profiles: tuple[Profile, ...] = tuple(catalog.profiles)
    for index, rule in enumerate(model.rules):
        try:
            holds = any(selects(rule.when, *combination, profile) for combination in usable for profile in profiles)
        except FleetError as fault:
            yield document.error(("rules", index, "when"), fault.message, fault.hint)
            continue
        if not holds:
            yield document.error(("rules", index), "never holds for any class, engine and profile", "take it out")
    for sized, engine, install in usable:
        for profile in profiles:
            try:
                resolve(catalog, Question(sized.id, model.name, profile, engine.id, install))
            except FleetError as fault:
                if fault.code != "refused":
                    yield fault
