"""The layers of a deployment, one on top of the other, with the origin of each value that is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.merge import leaves, merge
from vllm_fleet.catalogue.spellings import Spelled, translate
from vllm_fleet.resolve.provenance import Origin
from vllm_fleet.schema.recipe import FactCondition


@dataclass(frozen=True)
class Layer:
    """What one rule, or the fleet's override, sets. ``fact`` is None where it holds for every host."""

    args: Mapping[str, Any]
    env: Mapping[str, Any]
    origin: Origin
    fact: FactCondition | None = None


@dataclass(frozen=True)
class Values:
    """All layers merged. ``dropped`` holds the origin of each value that the release has no name for."""

    args: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Origin] = field(default_factory=dict)
    dropped: dict[str, Origin] = field(default_factory=dict)

    def notes(self, engine: str) -> tuple[str, ...]:
        """Notes about names that the release spells differently or does not have.

        Args:
            engine: the id of the engine.
        """
        origins = [origin for values in (self.provenance, self.dropped) for _, origin in sorted(values.items())]
        return tuple(origin.spelling.note(engine, origin.place) for origin in origins if origin.spelling)


def stack(layers: Iterable[Layer], active: Mapping[str, Spelled]) -> Values:
    """The layers from the first to the last; a later one wins.

    Args:
        layers: in their order.
        active: the spellings of the engine.

    Raises:
        FleetError: a layer has a name under two spellings.
    """
    values = Values()
    for layer in layers:
        values = _put(values, layer, active)
    # Where a mapping replaces a plain value, or the reverse, the replaced value leaves no origin.
    left = {name for name, _ in leaves({"args": values.args, "env": values.env})}
    return replace(values, provenance={name: origin for name, origin in values.provenance.items() if name in left})


def _put(below: Values, layer: Layer, active: Mapping[str, Spelled]) -> Values:
    try:
        own = translate(layer.args, layer.env, active)
    except FleetError as fault:
        fault.file = layer.origin.place
        raise
    provenance, dropped = dict(below.provenance), dict(below.dropped)
    for name, (spelled, value) in own.dropped.items():
        dropped.pop(name, None)
        if value is not None:
            dropped[name] = replace(layer.origin, spelling=spelled)
    for name, value in leaves({"args": own.args, "env": own.env}):
        if isinstance(value, Mapping):  # an empty one changes nothing below it
            continue
        provenance.pop(name, None)
        below_it = f"{name}."
        for gone in [known for known in provenance if known.startswith(below_it)]:
            del provenance[gone]
        if value is not None:
            entry = own.renamed.get(name)
            provenance[name] = replace(layer.origin, spelling=entry) if entry else layer.origin
    return Values(merge(below.args, own.args), merge(below.env, own.env), provenance, dropped)
