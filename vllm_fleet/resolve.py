"""(host class, engine, model, profile, overrides) -> Deployment: the ordered rules, applied and explained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from packaging.version import Version

from vllm_fleet import drafts
from vllm_fleet import fit as memory
from vllm_fleet.catalog import Catalog, SizedClass, in_range
from vllm_fleet.errors import FleetError
from vllm_fleet.fleet_schema import Overrides
from vllm_fleet.merge import leaves, merge
from vllm_fleet.proof import Origin, check_names
from vllm_fleet.schema import Engine, Feature, Install, Model, Profile, Rule, Support, When

#: Where the batch of max-throughput comes from, when the fleet says how long its sequences are.
FITTED = Origin(
    "vllm_fleet/fit.py",
    None,
    "as many sequences of the fleet's own max-model-len as the KV cache holds, and no more than vLLM's large default",
    "gpt-oss guide for 0.12.0, Balancing between Throughput and Latencies: Max Throughput",
)


@dataclass(frozen=True)
class Combination:
    """What the selectors of a rule look at. ``args`` and ``env`` are None until they are final."""

    host: SizedClass
    engine: Engine
    install: Install
    model: str
    profile: Profile
    features: tuple[Feature, ...] = ()
    tensor_parallel: int | None = None
    args: Mapping[str, Any] | None = None
    env: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Question:
    """What is asked of the catalogue; what is left out is chosen by it."""

    host_class: str
    model: str
    profile: Profile = "balanced"
    engine: str | None = None
    install: Install | None = None
    features: tuple[Feature, ...] = ()
    overrides: Overrides | None = None
    overrides_file: str = "fleet.yml"


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
    #: Whether the release takes a mapping in a config file only as JSON text.
    mappings_as_text: bool
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
    asked, support = combination(catalog, question)
    host, engine, install, model = asked.host, asked.engine, asked.install, catalog.model(question.model)
    args: dict[str, Any] = {}
    env: dict[str, str] = {}
    provenance: dict[str, Origin] = {}
    for layer_args, layer_env, origin in _layers(catalog, model, asked, question):
        args = merge(args, layer_args)
        env = merge(env, layer_env)
        for group, layer in (("args", layer_args), ("env", layer_env)):
            for key, value in leaves(layer):
                name = f"{group}.{key}"
                for gone in [known for known in provenance if known == name or known.startswith(f"{name}.")]:
                    del provenance[gone]
                if value is not None:
                    provenance[name] = origin
    names = catalog.names(engine)
    check_names(names, engine, args, env, provenance)
    notes = _judge(catalog, model, replace(asked, args=args, env=env))
    if not is_locked(engine, install):
        notes += (f"{engine.id} has no lock or digest yet: its recipe can be shown, and a fleet with it is refused",)
    tensor_parallel = asked.tensor_parallel or 1
    if tensor_parallel < 1 or host.devices % tensor_parallel:
        raise _refused(
            f"tensor-parallel-size {tensor_parallel} does not divide the {host.devices} devices of {host.id}",
            "choose a divisor",
        )
    utilization = float(names.flags["gpu-memory-utilization"]["default"])
    shape, draft_notes = drafts.shape_with_draft(catalog, model, args, provenance, tensor_parallel)
    fit = memory.fit(host, shape, args, env, tensor_parallel, utilization)
    own = question.overrides.args if question.overrides else {}
    if question.profile == "max-throughput" and own.get("max-model-len") and "max-num-seqs" not in own:
        args["max-num-seqs"] = min(fit.max_num_seqs, args.get("max-num-seqs", memory.LARGEST_BATCH))
        provenance["args.max-num-seqs"] = FITTED
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
        fit=fit,
        status=support.status,
        evidence=support.evidence,
        notes=notes + draft_notes,
        mappings_as_text=names.mappings_as_text,
        provenance=provenance,
    )


def combination(catalog: Catalog, question: Question) -> tuple[Combination, Support]:
    """What is asked with engine, install form and tensor parallelism chosen, and what is known of it.

    Raises:
        FleetError: an unknown name (``bad-input``), or nothing that serves it (``refused``).
    """
    host = catalog.host_class(question.host_class)
    model = catalog.model(question.model)
    if host.family.status == "unsupported":
        raise _refused(f"the class {host.id} is unsupported: {host.family.why}", f"source: {host.family.source}")
    engine, support = _choose_engine(catalog, host, model, question.engine)
    form = _choose_install(engine, question.install)
    asked = Combination(host, engine, form, model.name, question.profile, question.features)
    return replace(asked, tensor_parallel=_tensor_parallel(catalog, model, asked, question.overrides)), support


def _refused(message: str, hint: str) -> FleetError:
    return FleetError(message, hint, code="refused")


def supports(model: Model, host: SizedClass, engine: Engine) -> Support | None:
    """The first entry for that family and release; the recipes list the special before the general."""
    for entry in model.support:
        if host.family.name in entry.host_class and in_range(engine.release, entry.engine):
            return entry
    return None


def _choose_engine(catalog: Catalog, host: SizedClass, model: Model, wanted: str | None) -> tuple[Engine, Support]:
    candidates = [catalog.engine(wanted)] if wanted else list(catalog.engines.values())
    known: list[tuple[bool, Version, Engine, Support]] = []
    asked = f"{model.name} on {host.id} {f'with {wanted}' if wanted else 'with any engine'}"
    reason = f"no recipe for {asked}"
    for engine in candidates:
        if not builds_for(engine, host):
            continue
        support = supports(model, host, engine)
        if support and support.status != "unsupported":
            known.append((support.status == "verified", Version(engine.release), engine, support))
        elif support:
            reason = f"{asked} is unsupported: {support.evidence}"
    if not known:
        found = ((each.id, supports(model, host, each)) for each in catalog.engines.values() if builds_for(each, host))
        usable = sorted(name for name, support in found if support and support.status != "unsupported")
        hint = f"there are recipes with {', '.join(usable)}" if usable else "see docs/adding-a-recipe.md to add one"
        raise _refused(reason, hint)
    _, _, engine, support = max(known, key=lambda entry: entry[:2])
    return engine, support


def builds_for(engine: Engine, host: SizedClass) -> bool:
    """Whether the engine is a build for the devices of that class."""
    return engine.accelerator == host.family.accelerator and (engine.arch is None or host.family.arch in engine.arch)


def installs(engine: Engine) -> list[Install]:
    """The forms that the engine comes in, the preferred one first."""
    forms: list[Install] = ["wheel"] if engine.wheel else []
    return [*forms, "docker"] if engine.docker else forms


def is_locked(engine: Engine, install: Install) -> bool:
    """Whether what would be installed is pinned by digests, so that a host can be built from it."""
    if install == "docker":
        return engine.docker is not None and engine.docker.digest is not None
    return engine.wheel is not None and engine.wheel.lock is not None


def _choose_install(engine: Engine, wanted: Install | None) -> Install:
    available = installs(engine)
    if wanted is None and available:
        return available[0]
    if wanted not in available:
        raise _refused(f"{engine.id} cannot be installed as {wanted!r}", f"it comes as {', '.join(available)}")
    return wanted


def selects(when: When, asked: Combination) -> bool:
    """Whether a rule holds for a combination: every selector that is given must.

    One that looks at what is not known yet (``tensor_parallel``, final values) does not hold.
    """
    family = asked.host.family
    return (
        (when.accelerator is None or when.accelerator == family.accelerator)
        and (when.arch is None or family.arch in when.arch)
        and (when.host_class is None or family.name in when.host_class)
        and (when.devices is None or asked.host.devices in when.devices)
        and (when.engine is None or in_range(asked.engine.release, when.engine))
        and (when.install is None or when.install == asked.install)
        and (when.profile is None or asked.profile in when.profile)
        and (when.model is None or asked.model in when.model)
        and (when.feature is None or when.feature in asked.features)
        and (when.tensor_parallel is None or asked.tensor_parallel in when.tensor_parallel)
        and (when.at_least is None or _reach(asked.args, when.at_least))
        and (when.env_set is None or (asked.env is not None and all(name in asked.env for name in when.env_set)))
    )


def _reach(args: Mapping[str, Any] | None, limits: Mapping[str, float]) -> bool:
    return args is not None and all(float(args.get(name, "-inf")) >= limit for name, limit in limits.items())


def _tensor_parallel(catalog: Catalog, model: Model, asked: Combination, overrides: Overrides | None) -> int:
    """The final tensor parallelism; no rule that sets it may depend on it, so one pass finds it.

    Raises:
        FleetError: it is not a number.
    """
    layers = [rule.args for _, _, rule in catalog.rules(model) if selects(rule.when, asked)]
    merged: dict[str, Any] = {}
    for layer in [*layers, overrides.args if overrides else {}]:
        merged = merge(merged, {key: layer[key] for key in ("tensor-parallel-size",) if key in layer})
    size = merged.get("tensor-parallel-size", 1)
    if type(size) is not int:
        raise FleetError(f"tensor-parallel-size is {size!r}", "give a whole number", key="args.tensor-parallel-size")
    return size


def _layers(
    catalog: Catalog, model: Model, asked: Combination, question: Question
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any], Origin]]:
    for file, number, rule in catalog.rules(model):
        if selects(rule.when, asked):
            yield rule.args, rule.env, Origin(file, number, rule.why, rule.source)
    if question.overrides:
        own = question.overrides
        yield own.args, own.env, Origin(question.overrides_file, None, own.why, "the fleet's own override")


def _judge(catalog: Catalog, model: Model, final: Combination) -> tuple[str, ...]:
    """What the rules say of the final deployment.

    Raises:
        FleetError: one of them refuses it.
    """
    held: list[Rule] = [rule for _, _, rule in catalog.rules(model) if selects(rule.when, final)]
    for rule in held:
        if rule.refuse:
            raise _refused(f"{model.name} on {final.host.id} with {final.engine.id}: {rule.refuse}", rule.why)
    return tuple(rule.note for rule in held if rule.note)
