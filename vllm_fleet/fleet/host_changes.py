"""Which inputs of a host change in place in a way that stops it, by the table of ``recipes/host_changes.yml``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_fleet.catalogue.catalogue import load as load_catalog
from vllm_fleet.schema.host_change import Effect, HostChange

_WORDS: Mapping[Effect, str] = {
    "stops": "be stopped and started again",
    "restarts": "be restarted",
    "refused": "be changed in a way that the cloud refuses for a host that runs",
}


@dataclass(frozen=True)
class Stop:
    """A change in place that a host does not serve through.

    Attributes:
        path: the input, as the engine names it.
        effect: what the change does.
        old: its value now.
        new: its value after the change.
    """

    path: str
    effect: Effect
    old: Any
    new: Any

    def __str__(self) -> str:
        short = all(isinstance(value, str | int | None) for value in (self.old, self.new))
        return f"{self.path} {self.old} -> {self.new}" if short else self.path


def words(effect: Effect) -> str:
    """What happens to the host, after 'would'."""
    return _WORDS[effect]


def inputs_with(kind: str, effect: Effect) -> list[str]:
    """The inputs of a type whose change has an effect."""
    return [path for path, row in _rows(kind).items() if row.effect == effect]


def stops(kind: str, olds: Mapping[str, Any], news: Mapping[str, Any]) -> tuple[Stop, ...]:
    """The changes from one set of inputs to another that stop the host.

    Args:
        kind: the type of the resource; of another than a host nothing stops.
        olds: its inputs in the state.
        news: its inputs as the program gives them; what is unknown in a preview counts as changed.
    """
    return tuple(
        Stop(path, row.effect, old, new)
        for path, row in _rows(kind).items()
        for old, new in [(_at(olds, path), _at(news, path))]
        if old != new and (row.unless is None or new != row.unless)
    )


def _rows(kind: str) -> Mapping[str, HostChange]:
    return load_catalog().host_changes.types.get(kind, {})


def _at(inputs: Any, path: str) -> Any:
    """The value at a path; of several, the list of them. A part that is missing gives None."""
    found = list(_walk(inputs, path.split(".")))
    return found if "*" in path else found[0] if found else None


def _walk(data: Any, parts: list[str]) -> Iterator[Any]:
    if not parts:
        yield data
    elif parts[0] == "*" and isinstance(data, list):
        for item in data:
            yield from _walk(item, parts[1:])
    elif isinstance(data, Mapping) and parts[0] in data:
        yield from _walk(data[parts[0]], parts[1:])
