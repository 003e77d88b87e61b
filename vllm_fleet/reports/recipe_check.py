"""Errors between the files of ``recipes/``, beyond the schema of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import get_args

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue.catalogue import Catalog, SizedClass, in_range
from vllm_fleet.catalogue.engine_locks import lock_errors
from vllm_fleet.catalogue.spellings import applies
from vllm_fleet.host.engine_install import lock_command, lock_misfits
from vllm_fleet.reports import driver_check
from vllm_fleet.resolve import draft_memory
from vllm_fleet.resolve.resolve import Combination, Question, builds_for, installs, resolve, selects, supports
from vllm_fleet.schema.cloud_table import CloudTable
from vllm_fleet.schema.recipe import Engine, Feature, Machine, Model, When
from vllm_fleet.schema.spelling import Spelling

FEATURES: tuple[Feature, ...] = get_args(Feature)


def recipe_errors(catalog: Catalog, *, every_combination: bool = False) -> Iterator[FleetError]:
    """Every inconsistency: unknown names, rules that never match, combinations that do not resolve.

    Args:
        catalog: the recipes.
        every_combination: resolve each combination of host class, engine, install form, profile and feature; without
            it only as many as bring each rule, host class, install form and profile together with each engine.
    """
    for engine in catalog.engines.values():
        yield from _engine(catalog, engine)
    for cloud in catalog.clouds.values():
        yield from _cloud(catalog, cloud)
    for model in catalog.models.values():
        yield from _model(catalog, model, every_combination=every_combination)
    yield from draft_memory.draft_errors(catalog)
    yield from driver_check.driver_errors(catalog)
    yield from known_issue_errors(catalog)
    yield from spelling_errors(catalog)


def _cloud(catalog: Catalog, cloud: CloudTable) -> Iterator[FleetError]:
    for name, shape in cloud.shapes.items():
        try:
            catalog.host_class(shape.host_class)
        except FleetError as fault:
            yield catalog.documents[cloud.name].error(("shapes", name, "host_class"), fault.message, fault.hint)


def _engine(catalog: Catalog, engine: Engine) -> Iterator[FleetError]:
    document = catalog.documents[engine.id]
    for machine in engine.wheel.locks if engine.wheel else ():
        yield from _lock(catalog, engine, machine)
    try:
        catalog.names(engine)
    except FleetError as fault:
        yield document.error(("names",), f"{fault.file}: {fault.message}", fault.hint)


def _lock(catalog: Catalog, engine: Engine, machine: Machine) -> Iterator[FleetError]:
    document, at = catalog.documents[engine.id], ("wheel", "locks", machine)
    again = f"make it again with {lock_command(engine, machine)}"
    try:
        lock = catalog.lock(engine, machine)
    except FleetError as fault:
        yield document.error(at, f"{fault.file}: {fault.message}", fault.hint)
        return
    if lock is None:
        return
    for wrong in lock_errors(lock, engine, machine):
        yield document.error(at, f"{lock.file} {wrong}", again)
    for sized in catalog.sized_classes():
        if sized.machine == machine and _is_served(catalog, engine, sized):
            for message, hint in lock_misfits(lock, engine, sized):
                yield document.error(at, message, hint)


def _is_served(catalog: Catalog, engine: Engine, sized: SizedClass) -> bool:
    """Whether some model has a recipe for this engine on this class."""
    found = [supports(model, sized, engine) for model in catalog.models.values()]
    return builds_for(engine, sized) and any(entry and entry.status != "unsupported" for entry in found)


def _model(catalog: Catalog, model: Model, *, every_combination: bool) -> Iterator[FleetError]:
    document = catalog.documents[model.name]
    for name in model.encodings:
        if name not in catalog.encodings.encodings:
            yield document.error(("encodings",), f"{name!r} is not in recipes/encodings.yml", "add it there")
    if model.rules_of and (model.rules_of not in catalog.models or catalog.models[model.rules_of].rules_of):
        yield document.error(("rules_of",), f"{model.rules_of!r} is not a model with its own rules", "correct the name")
        return
    if model.scores and not model.scores_source:
        yield document.error(("scores",), "has no scores_source", "name the place where the scores were published")
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
    yield from rule_errors(catalog, model)
    yield from _resolutions(catalog, model, every=every_combination)


def rule_errors(catalog: Catalog, model: Model) -> Iterator[FleetError]:
    """Errors in a model's rules: invalid ranges, selectors that never match, unknown names in them."""
    document = catalog.documents[model.name]
    usable = list(combinations(catalog, model))
    for index, rule in enumerate(model.rules):
        try:
            holds = any(could_hold(rule.when, combination) for combination in usable)
        except FleetError as fault:
            yield document.error(("rules", index, "when"), fault.message, fault.hint)
            continue
        if not holds:
            yield document.error(("rules", index), "matches no class, engine and profile", "remove it")
            continue
        for at, message in _misspelt(catalog, rule.when, usable):
            yield document.error(("rules", index, "when", *at), message, "correct the spelling")


def _resolutions(catalog: Catalog, model: Model, *, every: bool) -> Iterator[FleetError]:
    """The combinations that neither resolve nor are refused for a reason, each error once.

    Most errors are those of a rule with an engine, such as a flag that the engine does not read. So a combination is
    left out when each of its parts (rules, host class, install form, profile) has been in another one that resolved
    with the same engine, or that was refused on the same hosts. With ``every`` none is left out.
    """
    reported: set[str] = set()
    #: Engine and part; engine, sized host class and part.
    resolved: set[tuple[str, str | int]] = set()
    refused: set[tuple[str, str, str | int]] = set()
    for case, rules in _cases(catalog, model):
        engine, host = case.engine.id, case.host.id
        parts: tuple[str | int, ...] = (*rules, case.host.family.name, case.install, case.profile)
        if not every and all((engine, part) in resolved or (engine, host, part) in refused for part in parts):
            continue
        try:
            resolve(catalog, Question(host, case.model, case.profile, engine, case.install, case.features))
        except FleetError as fault:
            if fault.code == ErrorCode.REFUSED:
                refused.update((engine, host, part) for part in parts)
            # The same error for each count of a class is one error.
            elif str(fault) not in reported:
                reported.add(str(fault))
                yield fault
        else:
            resolved.update((engine, part) for part in parts)


def _cases(catalog: Catalog, model: Model) -> Iterator[tuple[Combination, tuple[int, ...]]]:
    """Every combination without a feature and with each one that a rule selects, with the rules that can hold for it.

    Combinations that are refused before any rule is read are left out.
    """
    rules = [(rule.when, _without_final_values(rule.when)) for _, _, rule in catalog.rules(model)]
    for case in combinations(catalog, model):
        if _is_unsupported(model, case):
            continue
        holding = [
            (number, when.feature)
            for number, (when, known) in enumerate(rules)
            if _possible(when, case) and selects(known, case)
        ]
        # A feature that no rule selects here changes nothing.
        selected = dict.fromkeys(feature for _, feature in holding if feature)
        for features in ((), *((feature,) for feature in selected)):
            applied = tuple(number for number, feature in holding if feature in (None, *features))
            yield replace(case, features=features), applied


def _is_unsupported(model: Model, case: Combination) -> bool:
    """Whether a combination is refused before any rule is read."""
    support = supports(model, case.host, case.engine)
    return case.host.family.status == "unsupported" or support is None or support.status == "unsupported"


def known_issue_errors(catalog: Catalog) -> Iterator[FleetError]:
    """Errors in ``recipes/known_issues.yml``: invalid ranges, duplicate ids, selectors that never match."""
    document = catalog.documents["known_issues"]
    usable = [combination for model in catalog.models.values() for combination in combinations(catalog, model)]
    seen: set[str] = set()
    for index, issue in enumerate(catalog.known_issues.issues):
        if issue.id in seen:
            yield document.error(("issues", index, "id"), f"{issue.id!r} is listed twice", "rename one")
        seen.add(issue.id)
        try:
            holds = any(could_hold(issue.when, combination) for combination in usable)
        except FleetError as fault:
            yield document.error(("issues", index, "when", "engine"), fault.message, fault.hint)
            continue
        if not holds:
            yield document.error(("issues", index), "matches no class, engine and profile", "correct its selectors")
            continue
        for at, message in _misspelt(catalog, issue.when, usable):
            yield document.error(("issues", index, "when", *at), message, "correct the spelling")
    try:
        wanted = catalog.known_issues.harmony.engine
        covered = any(in_range(engine.release, wanted) for engine in catalog.engines.values())
    except FleetError as fault:
        yield document.error(("harmony", "engine"), fault.message, fault.hint)
        return
    if not covered:
        yield document.error(("harmony", "engine"), "no engine lies in it", "correct the range")


def _misspelt(
    catalog: Catalog, when: When, usable: Iterable[Combination]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Unknown names in selectors that match: a typo beside correct names selects nothing, silently."""
    for key, there in (
        ("arch", {family.arch for family in catalog.classes.values()}),
        ("host_class", set(catalog.classes)),
        ("model", set(catalog.models)),
    ):
        for index, value in enumerate(getattr(when, key) or ()):
            if value not in there:
                yield (key, index), f"there is no {value!r}"
    if not (when.at_least or when.env_set):
        return
    engines = {
        combination.engine.id: combination.engine for combination in usable if could_hold(when, combination)
    }.values()
    known = [(engine, catalog.names(engine)) for engine in engines]
    for name in when.at_least or ():
        if not any(names.reads(f"args.{name}", engine.accelerator) for engine, names in known):
            yield ("at_least", name), f"no engine that this is for reads the flag {name!r}"
        elif not any(names.flags.get(name, {}).get("type") in ("int", "float") for _, names in known):
            yield ("at_least", name), f"the flag {name!r} does not take a number"
    for index, name in enumerate(when.env_set or ()):
        if not any(names.reads(f"env.{name}", engine.accelerator) for engine, names in known):
            yield ("env_set", index), f"no engine that this is for reads the variable {name!r}"


def spelling_errors(catalog: Catalog) -> Iterator[FleetError]:
    """Errors in ``recipes/spellings.yml``: entries that never apply, or that lead to a name unknown to the release."""
    document = catalog.documents["spellings"]
    usable = [combination for model in catalog.models.values() for combination in combinations(catalog, model)]
    engines = {combination.engine.id: combination.engine for combination in usable}
    reached: dict[int, list[Engine]] = {}
    for index, spelling in enumerate(catalog.spellings.spellings):
        try:
            reached[index] = [engine for engine in engines.values() if applies(spelling, engine)]
        except FleetError as fault:
            yield document.error(("spellings", index, "engine"), fault.message, fault.hint)
            continue
        if not reached[index]:
            dead = "matches no class, engine and model"
            yield document.error(("spellings", index), dead, "remove it, or correct its range")
    for index, within in reached.items():
        others = {other: readers for other, readers in reached.items() if other != index}
        for engine in within:
            there = {catalog.spellings.spellings[other].name for other, readers in others.items() if engine in readers}
            for at, message in _spelling(catalog, catalog.spellings.spellings[index], engine, there):
                yield document.error(("spellings", index, *at), message, "narrow its range, or correct the name")


def _spelling(
    catalog: Catalog, spelling: Spelling, engine: Engine, others: set[str]
) -> Iterator[tuple[tuple[str, ...], str]]:
    names = catalog.names(engine)
    if names.reads(spelling.name, engine.accelerator) and not names.deprecates(spelling.name):
        yield ("name",), f"{engine.id} reads {spelling.name!r} itself"
    if spelling.to and not names.reads(spelling.to, engine.accelerator):
        yield ("to",), f"{engine.id} does not read {spelling.to!r}"
    if spelling.name in others:
        yield (), f"{spelling.name!r} is listed twice for {engine.id}"
    if spelling.to in others:
        yield ("to",), f"{spelling.to!r} is itself renamed for {engine.id}"


def combinations(catalog: Catalog, model: Model) -> Iterator[Combination]:
    """Every class, engine, install form and profile that the model's support names, with all features."""
    entries = []
    for entry in model.support:
        try:
            released = {engine.id for engine in catalog.engines.values() if in_range(engine.release, entry.engine)}
        except FleetError:
            continue
        entries.append((frozenset(entry.host_class), released))
    for host in catalog.sized_classes():
        for engine in catalog.engines.values():
            if builds_for(engine, host) and any(
                host.family.name in families and engine.id in released for families, released in entries
            ):
                for install in installs(engine):
                    for profile in catalog.profiles:
                        yield Combination(host, engine, install, model.name, profile, FEATURES)


def could_hold(when: When, combination: Combination) -> bool:
    """Whether selectors can hold for a combination with some tensor parallelism and some final values."""
    return _possible(when, combination) and selects(_without_final_values(when), combination)


def _without_final_values(when: When) -> When:
    """The selectors that are known before a deployment is resolved."""
    if when.tensor_parallel is None and when.at_least is None and when.env_set is None:
        return when
    return when.model_copy(update={"tensor_parallel": None, "at_least": None, "env_set": None})


def _possible(when: When, combination: Combination) -> bool:
    return when.tensor_parallel is None or any(combination.host.devices % size == 0 for size in when.tensor_parallel)
