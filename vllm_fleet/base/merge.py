"""The one merge rule: later wins, ``None`` removes, mappings merge key by key, all else is replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_PLAIN = frozenset({str, int, float, bool, type(None)})


def merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """The base with the layer on top of it; neither is changed."""
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
        # Most values are plain: the test that tells so costs least.
        if type(value) not in _PLAIN and isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
