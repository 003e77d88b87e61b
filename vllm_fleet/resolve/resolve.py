"""(host class, engine, model, profile, overrides) -> Deployment: the ordered rules, applied and explained."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vllm_fleet.base.errors import ErrorCode, FleetError, raise_all
from vllm_fleet.base.merge import leaves, merge
from vllm_fleet.catalogue import engine_locks, spellings
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.catalogue.selectors import Combination, selects
from vllm_fleet.catalogue.spellings import Spelled
from vllm_fleet.resolve import draft_memory, image_digest, tool_servers
from vllm_fleet.resolve import memory_fit as memory
from vllm_fleet.resolve.deployment import Alternative, Deployment, choose
from vllm_fleet.resolve.engine_choice import (
    builds_for,
    choose_engine,
    choose_install,
    installs,
    is_locked,
    refused,
    supports,
)
from vllm_fleet.resolve.image_digest import Digests, pinned
from vllm_fleet.resolve.name_check import check_names
from vllm_fleet.resolve.provenance import Origin
from vllm_fleet.resolve.rule_layers import Layer, Values, stack
from vllm_fleet.schema.recipe import Engine, Feature, Install, Model, Profile, Rule, Support

if TYPE_CHECKING:  # a recipe without a fleet needs none of the records of fleet.yml
    from vllm_fleet.schema.fleet import Overrides

__all__ = [
    "Alternative",
    "Combination",
    "Deployment",
    "Question",
    "builds_for",
    "choose",
    "combination",
    "installs",
    "is_locked",
    "resolve",
    "selects",
    "supports",
]


@dataclass(frozen=True)
class Question:
    """A request to the catalogue; omitted fields are chosen by it."""

    host_class: str
    model: str
    profile: Profile = "balanced"
    engine: str | None = None
    install: Install | None = None
    features: tuple[Feature, ...] = ()
    overrides: Overrides | None = None
    overrides_file: str = "fleet.yml"
    images: Digests = field(default_factory=dict)
    locks: frozenset[str] = frozenset()


def resolve(catalog: Catalog, question: Question) -> Deployment:
    """Applies the model's rules, top to bottom, then the fleet's overrides.

    Raises:
        FleetError: an unknown name (``bad-input``), or a combination that the recipes refuse (``refused``).
    """
    combined, support = combination(catalog, question)
    host, model = combined.host, catalog.model(question.model)
    engine = combined.engine
    layers = list(_layers(catalog, model, combined, question))
    active = spellings.applying(catalog, engine)
    values = stack(layers, active)
    names = catalog.names(engine)
    check_names(names, engine, values.args, values.env, values.provenance)
    lock = catalog.lock(engine, host.machine) if combined.install == "wheel" else None
    raise_all(list(tool_servers.tool_server_errors(engine.id, lock, values.args, question.features)))
    notes = _judge(catalog, model, replace(combined, args=values.args, env=values.env))
    notes += values.notes(engine.id)
    announced = sorted(key.partition(".")[2] for key in values.provenance if names.deprecates(key))
    notes += tuple(
        f"{name} is deprecated in {engine.id}: it still works, and a later release removes it" for name in announced
    )
    alternatives = tuple(_alternatives(layers, values, active))
    for other in alternatives:
        origins = {**values.provenance, **other.provenance}
        check_names(names, engine, merge(values.args, other.args), merge(values.env, other.env), origins)
    notes += tuple(alternative.note for alternative in alternatives)
    if not is_locked(engine, combined.install, host.machine, question.locks):
        notes += (f"{engine.id} has no lock or digest yet: its recipe can be shown, but a fleet cannot use it",)
    tensor_parallel = combined.tensor_parallel or 1
    if tensor_parallel < 1 or host.devices % tensor_parallel:
        raise refused(
            f"tensor-parallel-size {tensor_parallel} does not divide the {host.devices} devices of {host.id}",
            "choose a divisor",
        )
    utilization = float(names.flags["gpu-memory-utilization"]["default"])
    served, draft_notes = draft_memory.served_with_draft(catalog, model, values.args, values.provenance)

    def fit_of(args: Mapping[str, Any]) -> memory.Fit:
        instance = memory.InstanceSettings(args, values.env, tensor_parallel, engine.release, utilization)
        return memory.fit(catalog.memory, host, served, instance)

    if question.profile == "max-throughput":
        values = _fill(values, fit_of, model, question)
    fit = fit_of(values.args)
    return Deployment(
        host_class=host.id,
        model=model.name,
        engine=engine,
        engine_directory_id=image_digest.directory_id(engine)
        if combined.install == "docker"
        else engine_locks.directory_id(engine, catalog.lock(engine, host.machine)),
        profile=question.profile,
        install=combined.install,
        instances=host.devices // tensor_parallel,
        tensor_parallel_size=tensor_parallel,
        args=values.args,
        env=values.env,
        fit=fit,
        status=support.status,
        evidence=support.evidence,
        notes=notes + draft_notes + fit.notes,
        mappings_as_text=names.mappings_as_text,
        provenance=values.provenance,
        alternatives=alternatives,
    )


def combination(catalog: Catalog, question: Question) -> tuple[Combination, Support]:
    """The combination of a request before any rule is applied, and its support entry.

    Raises:
        FleetError: an unknown name, or a class, engine or install form that cannot be.
    """
    _check_known(catalog, question)
    host = catalog.host_class(question.host_class)
    model = catalog.model(question.model)
    if host.family.status == "unsupported":
        raise refused(f"the class {host.id} is unsupported: {host.family.why}", f"source: {host.family.source}")

    def is_pinned(engine: Engine) -> bool:
        own = pinned(engine, question.images, host.family.facts.machine)
        forms = [question.install] if question.install else installs(own)
        return any(is_locked(own, form, host.machine, question.locks) for form in forms)

    engine, support = choose_engine(catalog, host, model, question.engine, is_pinned)
    engine = pinned(engine, question.images, host.family.facts.machine)
    form = choose_install(engine, question.install, host.machine, question.locks)
    combined = Combination(host, engine, form, model.name, question.profile, question.features)
    return replace(combined, tensor_parallel=_tensor_parallel(catalog, model, combined, question.overrides)), support


def _check_known(catalog: Catalog, question: Question) -> None:
    """Raises FleetError with every name of a request that the catalogue does not have."""
    asked = ((catalog.host_class, question.host_class), (catalog.model, question.model))
    errors: list[FleetError] = []
    for find, name in (*asked, *([(catalog.engine, question.engine)] if question.engine else [])):
        try:
            find(name)
        except FleetError as fault:
            errors.append(fault)
    raise_all(errors)


def _tensor_parallel(catalog: Catalog, model: Model, combined: Combination, overrides: Overrides | None) -> int:
    """The final tensor parallelism; no rule that sets it may depend on it, so one pass finds it.

    Raises:
        FleetError: it is not a number.
    """
    layers = [rule.args for _, _, rule in catalog.rules(model) if selects(rule.when, combined)]
    merged: dict[str, Any] = {}
    for layer in [*layers, overrides.args if overrides else {}]:
        merged = merge(merged, {key: layer[key] for key in ("tensor-parallel-size",) if key in layer})
    size = merged.get("tensor-parallel-size", 1)
    if type(size) is not int:
        raise FleetError(f"tensor-parallel-size is {size!r}", "give a whole number", key="args.tensor-parallel-size")
    return size


def _layers(catalog: Catalog, model: Model, combined: Combination, question: Question) -> Iterator[Layer]:
    for file, number, rule in catalog.rules(model):
        if selects(rule.when, combined):
            yield Layer(rule.args, rule.env, Origin(file, number, rule.why, rule.source), rule.when.fact)
    if question.overrides:
        own = question.overrides
        yield Layer(own.args, own.env, Origin(question.overrides_file, None, own.why, "the fleet's own override"))


def _judge(catalog: Catalog, model: Model, final: Combination) -> tuple[str, ...]:
    """The notes of the rules about the final deployment.

    Raises:
        FleetError: one of them refuses it.
    """
    held: list[Rule] = [rule for _, _, rule in catalog.rules(model) if selects(rule.when, final)]
    for rule in held:
        if rule.refuse:
            raise refused(f"{model.name} on {final.host.id} with {final.engine.id}: {rule.refuse}", rule.why)
    return tuple(rule.note for rule in held if rule.note)


def _alternatives(layers: list[Layer], whole: Values, active: Mapping[str, Spelled]) -> Iterator[Alternative]:
    """For each layer with a fact: how the values differ without it. A layer that changes nothing yields nothing."""
    there = dict(leaves({"args": whole.args, "env": whole.env}))
    for layer in layers:
        if layer.fact is None:
            continue
        rest = stack([other for other in layers if other is not layer], active)
        left = dict(leaves({"args": rest.args, "env": rest.env}))
        changed = sorted(key for key in {*there, *left} - {"args", "env"} if there.get(key) != left.get(key))
        if not changed:
            continue
        top: dict[str, Any] = {"args": {}, "env": {}}
        for key in changed:
            group, *path = key.split(".")
            below = top[group]
            for part in path[:-1]:
                below = below.setdefault(part, {})
            below[path[-1]] = left.get(key)
        back = {key: rest.provenance[key] for key in changed if key in left}
        yield Alternative(layer.fact, tuple(changed), top["args"], top["env"], back, layer.origin)


def _fill(
    values: Values, fit_of: Callable[[Mapping[str, Any]], memory.Fit], model: Model, question: Question
) -> Values:
    """The batch of max-throughput: what fits, unless the fleet has set its own. More sequences leave less for each."""
    key = "args.max-num-seqs"
    own = question.overrides.args if question.overrides else {}
    if "max-num-seqs" in own:
        return values
    length = values.provenance.get("args.max-model-len")
    own_tokens = values.args["max-model-len"] if length and length.rule is None else None

    def of(sequences: int) -> memory.Batch:
        args = {**values.args, "max-num-seqs": sequences}
        return memory.batch(fit_of(args), model.shape, args, own_tokens)

    def holds(sequences: int) -> bool:
        try:
            return of(sequences).sequences >= sequences
        except FleetError as fault:
            if fault.code != ErrorCode.REFUSED:
                raise
            return False

    limit = values.provenance.get(key)
    most = f"the {values.args['max-num-seqs']} of {limit.place}" if limit else memory.LARGEST_BATCH_IS
    largest = values.args.get("max-num-seqs", memory.LARGEST_BATCH)
    size = (
        largest if holds(largest) else max(1, bisect.bisect_left(range(1, largest), True, key=lambda n: not holds(n)))
    )
    why = f"as many sequences of {of(size).basis} as the KV cache holds, and no more than {most}"
    origin = Origin("vllm_fleet/resolve/memory_fit.py", None, why, memory.BATCH_SOURCE)
    return replace(values, args={**values.args, "max-num-seqs": size}, provenance={**values.provenance, key: origin})
