"""``recipes/`` -> one indexed catalogue. Nothing else reads these files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version
from pydantic import BaseModel

from vllm_fleet.base import did_you_mean, paths, yaml_document
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.errors import raise_all as raise_all
from vllm_fleet.catalogue import engine_locks
from vllm_fleet.catalogue.engine_locks import Lock
from vllm_fleet.catalogue.engine_names import EngineNames, read_names
from vllm_fleet.schema.cloud_table import CloudTable
from vllm_fleet.schema.distribution import Distributions
from vllm_fleet.schema.draft import Draft
from vllm_fleet.schema.driver import Drivers
from vllm_fleet.schema.encoding import Encodings
from vllm_fleet.schema.gates import Gates
from vllm_fleet.schema.gpu_error import GpuErrors
from vllm_fleet.schema.host_change import HostChanges
from vllm_fleet.schema.known_issue import KnownIssues
from vllm_fleet.schema.memory import Memory
from vllm_fleet.schema.recipe import Engine, HostClass, Machine, Model, Profile, Profiles, Rule
from vllm_fleet.schema.spelling import Spellings
from vllm_fleet.schema.start_log import StartLog

Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class SizedClass:
    """A host class with its count: ``h100-8`` is the family ``h100`` and eight devices."""

    id: str
    family: HostClass
    count: int

    @property
    def machine(self) -> Machine:
        """The kind of its hosts' processors; each has a lock of its own."""
        return self.family.facts.machine or "x86_64"

    @property
    def devices(self) -> int:
        """Devices that vLLM can be spread over; a CPU host is one device with any number of cores."""
        return 1 if self.family.accelerator == "cpu" else self.count


@dataclass(frozen=True)
class Catalog:
    """Everything in ``recipes/``, by name, with the file of each record."""

    root: Path
    classes: Mapping[str, HostClass]
    engines: Mapping[str, Engine]
    models: Mapping[str, Model]
    drafts: Mapping[str, Draft]
    clouds: Mapping[str, CloudTable]
    profiles: Mapping[Profile, str]
    encodings: Encodings
    distributions: Distributions
    known_issues: KnownIssues
    spellings: Spellings
    drivers: Drivers
    gpu_errors: GpuErrors
    host_changes: HostChanges
    memory: Memory
    start_log: StartLog
    gates: Gates
    documents: Mapping[str, yaml_document.Document] = field(repr=False)

    def host_class(self, name: str) -> SizedClass:
        """The class of a name such as ``h100-8``.

        Raises:
            FleetError: no family or no such count.
        """
        family_name, _, count = name.rpartition("-")
        family = self.classes.get(family_name)
        if family is None or not count.isdigit():
            known = sorted(sized.id for sized in self.sized_classes())
            hint = did_you_mean.hint(name, known, f"known classes: {', '.join(known)}")
            raise FleetError(f"there is no host class {name!r}", hint, key="host_class")
        if int(count) not in family.counts:
            sizes = ", ".join(f"{family_name}-{size}" for size in family.counts)
            raise FleetError(f"the class {family_name!r} has no size {count}", f"it comes as {sizes}", key="host_class")
        return SizedClass(name, family, int(count))

    def sized_classes(self) -> Iterator[SizedClass]:
        """Every class in every count."""
        for family in self.classes.values():
            for count in family.counts:
                yield SizedClass(f"{family.name}-{count}", family, count)

    def engine(self, name: str) -> Engine:
        """The engine of that id.

        Raises:
            FleetError: unknown engine.
        """
        if name not in self.engines:
            hint = did_you_mean.hint(name, self.engines, f"known engines: {', '.join(sorted(self.engines))}")
            raise FleetError(f"there is no engine {name!r}", hint, key="engine")
        return self.engines[name]

    def model(self, name: str) -> Model:
        """The model of that name.

        Raises:
            FleetError: unknown model, or a draft, which cannot be served (code ``refused``).
        """
        if draft := self.drafts.get(name):
            raise FleetError(
                f"{name} is a draft: it proposes tokens for {', '.join(draft.draft_of)} and serves nothing by itself",
                f"serve {draft.draft_of[0]} with the feature {draft.method}",
                key="model",
                code=ErrorCode.REFUSED,
            )
        if name not in self.models:
            hint = did_you_mean.hint(name, self.models, f"known models: {', '.join(sorted(self.models))}")
            raise FleetError(f"there is no model {name!r}", hint, key="model")
        return self.models[name]

    def names(self, engine: Engine) -> EngineNames:
        """What the engine's release reads."""
        return read_names(self.root / "engines" / "names" / f"{engine.names}.yml", engine.fork)

    def rules(self, model: Model) -> Iterator[tuple[str, int, Rule]]:
        """The model's rules in their order: file, number in that file from 1, and rule.

        Raises:
            FleetError: the model takes its first rules from one that does not exist or that does so itself.
        """
        if model.rules_of:
            first = self.models.get(model.rules_of)
            if first is None or first.rules_of:
                raise self.documents[model.name].error(
                    ("rules_of",), f"{model.rules_of!r} is not a model with its own rules", "correct the name"
                )
            yield from self.rules(first)
        file = self.documents[model.name].file
        for number, rule in enumerate(model.rules, start=1):
            yield file, number, rule

    def lock_file(self, engine: Engine, machine: Machine) -> Path | None:
        """The engine's hash-locked list of packages for a machine, where it has a wheel form that is locked."""
        name = engine.wheel.locks.get(machine) if engine.wheel else None
        return self.root / "engines" / name if name else None

    def lock(self, engine: Engine, machine: Machine) -> Lock | None:
        """The engine's lock for a machine; None where it has none.

        Raises:
            FleetError: it cannot be read, or is not a lock.
        """
        path = self.lock_file(engine, machine)
        return engine_locks.read(path) if path else None


@cache
def load(root: Path | None = None) -> Catalog:
    """Reads ``recipes/``.

    Raises:
        FleetError: a file breaks its schema; it carries every error of every file.
    """
    base = root or paths.root() / "recipes"
    documents: dict[str, yaml_document.Document] = {}
    # A pattern of names leaves out a folder that this user may not list.
    errors: list[FleetError] = list(paths.unlisted_folders(base))

    def records(pattern: str, model: type[Record], key: str) -> dict[str, Record]:
        records_by_name: dict[str, Record] = {}
        for path in sorted(base.glob(pattern)):
            try:
                document = yaml_document.read_with_errors(path)
                record = yaml_document.parse(document, model)
            except FleetError as fault:
                errors.extend([fault, *fault.others])
                continue
            name = str(getattr(record, key))
            expected = str(path.relative_to(base / pattern.split("/")[0]).with_suffix(""))
            if name != expected:
                errors.append(
                    document.error((key,), f"is {name!r}, but the name of the file is {expected!r}", "rename one")
                )
            documents[name] = document
            records_by_name[name] = record
        return records_by_name

    classes = records("host_classes/*.yml", HostClass, "name")
    engines = records("engines/*.yml", Engine, "id")
    models = records("models/*/*.yml", Model, "name")
    drafts = records("drafts/*/*.yml", Draft, "name")
    clouds = records("clouds/*.yml", CloudTable, "name")
    singles: list[BaseModel] = []
    for name, kind in (
        ("profiles", Profiles),
        ("encodings", Encodings),
        ("distributions", Distributions),
        ("known_issues", KnownIssues),
        ("spellings", Spellings),
        ("drivers", Drivers),
        ("gpu_errors", GpuErrors),
        ("host_changes", HostChanges),
        ("memory", Memory),
        ("start_log", StartLog),
        ("gates", Gates),
    ):
        try:
            documents[name] = yaml_document.read_with_errors(base / f"{name}.yml")
            singles.append(yaml_document.parse(documents[name], kind))
        except FleetError as fault:
            errors.extend([fault, *fault.others])
    raise_all(errors)
    profiles, encodings, distributions, known, spellings, drivers, *others = singles
    gpu_errors, host_changes, memory, start_log, gates = others
    assert isinstance(profiles, Profiles)  # noqa: S101 - narrows a type; raise_all has ruled out the rest
    assert isinstance(encodings, Encodings)  # noqa: S101 - as above
    assert isinstance(distributions, Distributions)  # noqa: S101 - as above
    assert isinstance(known, KnownIssues)  # noqa: S101 - as above
    assert isinstance(spellings, Spellings)  # noqa: S101 - as above
    assert isinstance(drivers, Drivers)  # noqa: S101 - as above
    assert isinstance(gpu_errors, GpuErrors)  # noqa: S101 - as above
    assert isinstance(host_changes, HostChanges)  # noqa: S101 - as above
    assert isinstance(memory, Memory)  # noqa: S101 - as above
    assert isinstance(start_log, StartLog)  # noqa: S101 - as above
    assert isinstance(gates, Gates)  # noqa: S101 - as above
    return Catalog(
        base,
        classes,
        engines,
        models,
        drafts,
        clouds,
        profiles.profiles,
        encodings,
        distributions,
        known,
        spellings,
        drivers,
        gpu_errors,
        host_changes,
        memory,
        start_log,
        gates,
        documents,
    )


@cache
def in_range(release: str, wanted: str) -> bool:
    """Whether a release lies in a range such as ``>=0.12,<0.32``.

    Raises:
        FleetError: not a valid range.
    """
    try:
        return Version(release) in SpecifierSet(wanted)
    except InvalidSpecifier:
        raise FleetError(f"{wanted!r} is not a range of releases", "write for example '>=0.12,<0.32'") from None
