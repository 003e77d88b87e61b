"""The merge rule: the later value wins, ``None`` removes a key, mappings merge key by key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_PLAIN = frozenset({str, int, float, bool, type(None)})


def merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the base with the layer merged into it."""
    result = dict(base)
    for key, value in layer.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            below = result.get(key)
            merged = merge(below if isinstance(below, Mapping) else {}, value)
            if merged:
                result[key] = merged
            else:
                result.pop(key, None)
        else:
            result[key] = value
    return result


def leaves(layer: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of a nested mapping with its dotted key."""
    for key, value in layer.items():
        # Most values are plain, and this test is the cheapest.
        if type(value) not in _PLAIN and isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
