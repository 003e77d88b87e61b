"""(host class, engine, model, profile, overrides) -> Deployment: the ordered rules, applied and explained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from vllm_fleet import fit as memory
from vllm_fleet.catalog import Catalog, SizedClass, in_range
from vllm_fleet.errors import FleetError
from vllm_fleet.fleet_schema import Overrides
from vllm_fleet.merge import leaves, merge
from vllm_fleet.names import EngineNames
from vllm_fleet.schema import Engine, Install, Model, Profile, Support, When

#: Flags that the renderer sets for each instance; neither a rule nor an override may.
RENDERED_FLAGS = frozenset({"model", "served-model-name", "host", "port", "api-key", "config"})


@dataclass(frozen=True)
class Question:
    """What is asked of the catalogue; what is left out is chosen by it."""

    host_class: str
    model: str
    profile: Profile = "balanced"
    engine: str | None = None
    install: Install | None = None
    overrides: Overrides | None = None
    overrides_file: str = "fleet.yml"


@dataclass(frozen=True)
class Origin:
    """Where a value comes from. ``rule`` counts from 1; it is None for an override."""

    file: str
    rule: int | None
    why: str
    source: str

    def record(self) -> dict[str, Any]:
        """The provenance entry of the JSON contract."""
        return {"file": self.file, "rule": self.rule, "why": self.why, "source": self.source}


@dataclass(frozen=True)
class Deployment:
    """What one host of a class runs: instances, arguments, environment, and why."""

    host_class: str
    model: str
    engine: Engine
    engine_directory_id: str
    profile: Profile
    install: Install
    instances: int
    tensor_parallel_size: int
    args: Mapping[str, Any]
    env: Mapping[str, str]
    fit: memory.Fit
    status: str
    evidence: str
    notes: tuple[str, ...]
    provenance: Mapping[str, Origin]

    def record(self) -> dict[str, Any]:
        """The deployment as the JSON contract spells it."""
        return {
            "host_class": self.host_class,
            "model": self.model,
            "engine": self.engine.id,
            "profile": self.profile,
            "instances": self.instances,
            "tensor_parallel_size": self.tensor_parallel_size,
            "args": dict(self.args),
            "env": dict(self.env),
            "install": {"method": self.install, "directory_id": self.engine_directory_id},
            "fit": self.fit.record(),
            "status": self.status,
            "evidence": self.evidence,
            "notes": list(self.notes),
            "provenance": {key: origin.record() for key, origin in sorted(self.provenance.items())},
        }


def resolve(catalog: Catalog, question: Question) -> Deployment:
    """Applies the model's rules, top to bottom, then the fleet's overrides.

    Raises:
        FleetError: an unknown name (``bad-input``), or a combination that the recipes refuse (``refused``).
    """
    host = catalog.host_class(question.host_class)
    model = catalog.model(question.model)
    if host.family.status == "unsupported":
        raise _refused(f"the class {host.id} is unsupported: {host.family.why}", f"source: {host.family.source}")
    engine, support = _choose_engine(catalog, host, model, question.engine)
    install = _choose_install(engine, question.install)
    args: dict[str, Any] = {}
    env: dict[str, str] = {}
    provenance: dict[str, Origin] = {}
    for layer_args, layer_env, origin in _layers(catalog, host, engine, install, model, question):
        args = merge(args, layer_args)
        env = merge(env, layer_env)
        for group, layer in (("args", layer_args), ("env", layer_env)):
            for key, value in leaves(layer):
                if value is None:
                    provenance.pop(f"{group}.{key}", None)
                else:
                    provenance[f"{group}.{key}"] = origin
    check_names(catalog.names(engine), engine, args, env, provenance)
    tensor_parallel = int(args.get("tensor-parallel-size", 1))
    if tensor_parallel < 1 or host.devices % tensor_parallel:
        raise _refused(
            f"tensor-parallel-size {tensor_parallel} does not divide the {host.devices} devices of {host.id}",
            "choose a divisor",
        )
    return Deployment(
        host_class=host.id,
        model=model.name,
        engine=engine,
        engine_directory_id=catalog.engine_directory_id(engine),
        profile=question.profile,
        install=install,
        instances=host.devices // tensor_parallel,
        tensor_parallel_size=tensor_parallel,
        args=args,
        env=env,
        fit=memory.fit(host, model.shape, args, env, tensor_parallel),
        status=support.status,
        evidence=support.evidence,
        notes=(),
        provenance=provenance,
    )


def _refused(message: str, hint: str) -> FleetError:
    return FleetError(message, hint, code="refused")


def _supports(model: Model, host: SizedClass, engine: Engine) -> Support | None:
    """The first entry for that family and release; the recipes list the special before the general."""
    for entry in model.support:
        if host.family.name in entry.host_class and in_range(engine.release, entry.engine):
            return entry
    return None


def _choose_engine(catalog: Catalog, host: SizedClass, model: Model, wanted: str | None) -> tuple[Engine, Support]:
    candidates = [catalog.engine(wanted)] if wanted else list(catalog.engines.values())
    known: list[tuple[bool, Version, Engine, Support]] = []
    for engine in candidates:
        if engine.accelerator != host.family.accelerator:
            continue
        support = _supports(model, host, engine)
        if support and support.status != "unsupported":
            known.append((support.status == "verified", Version(engine.release), engine, support))
        elif support and wanted:
            raise _refused(f"{model.name} on {host.id} with {wanted} is unsupported: {support.evidence}", "")
    if not known:
        what = f"with {wanted}" if wanted else "with any engine"
        usable = sorted(
            engine.id
            for engine in catalog.engines.values()
            if engine.accelerator == host.family.accelerator and _supports(model, host, engine)
        )
        raise _refused(
            f"no recipe for {model.name} on {host.id} {what}",
            f"there are recipes with {', '.join(usable)}" if usable else "docs/adding-a-recipe.md tells how to add one",
        )
    _, _, engine, support = max(known, key=lambda entry: entry[:2])
    return engine, support


def _choose_install(engine: Engine, wanted: Install | None) -> Install:
    available: list[Install] = ["wheel"] if engine.wheel else []
    if wanted is None and available:
        return available[0]
    if wanted not in available:
        raise _refused(f"{engine.id} cannot be installed as {wanted!r}", f"it comes as {', '.join(available)}")
    return wanted


def selects(when: When, host: SizedClass, engine: Engine, install: Install, profile: Profile) -> bool:
    """Whether a rule holds for a combination: every selector that is given must."""
    return (
        (when.accelerator is None or when.accelerator == host.family.accelerator)
        and (when.arch is None or host.family.arch in when.arch)
        and (when.host_class is None or host.family.name in when.host_class)
        and (when.devices is None or host.devices in when.devices)
        and (when.engine is None or in_range(engine.release, when.engine))
        and (when.install is None or when.install == install)
        and (when.profile is None or profile in when.profile)
    )


def _layers(
    catalog: Catalog, host: SizedClass, engine: Engine, install: Install, model: Model, question: Question
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any], Origin]]:
    file = catalog.documents[model.name].file
    for number, rule in enumerate(model.rules, start=1):
        if selects(rule.when, host, engine, install, question.profile):
            yield rule.args, rule.env, Origin(file, number, rule.why, rule.source)
    if question.overrides:
        own = question.overrides
        yield own.args, own.env, Origin(question.overrides_file, None, own.why, "the fleet's own override")


def check_names(
    names: EngineNames,
    engine: Engine,
    args: Mapping[str, Any],
    env: Mapping[str, Any],
    provenance: Mapping[str, Origin],
) -> None:
    """Proves every name against what the release reads.

    Raises:
        FleetError: a name that the release does not read, with the place that sets it.
    """

    def unread(group: str, name: str, what: str) -> FleetError:
        origin = next(
            o for key, o in provenance.items() if key == f"{group}.{name}" or key.startswith(f"{group}.{name}.")
        )
        rule = f", rule {origin.rule}" if origin.rule else ""
        return FleetError(
            f"{engine.id} does not read the {what} {name!r}",
            "see recipes/engines/names for what it reads",
            origin.file + rule,
            key=f"{group}.{name}",
        )

    for name in args:
        if name in RENDERED_FLAGS:
            fault = unread("args", name, "argument")
            fault.message, fault.hint = f"{name!r} is set for each instance by the project", "take it out"
            raise fault
        if name not in names.flags:
            raise unread("args", name, "flag")
        if args[name] is False and not names.flags[name].get("negatable"):
            fault = unread("args", name, "flag")
            fault.message, fault.hint = f"{name!r} has no form that says false", "leave it out (null takes it away)"
            raise fault
    for key in (args.get("compilation-config") or {}).get("pass_config", {}):
        if key not in names.pass_config:
            raise unread("args", f"compilation-config.pass_config.{key}", "key")
    for name in env:
        if name not in names.env and name not in names.beside:
            raise unread("env", name, "environment variable")
