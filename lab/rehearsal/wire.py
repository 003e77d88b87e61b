"""Property bags of the engine as plain data, and paths into them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from google.protobuf import json_format, struct_pb2

#: The marker of a value that is unknown in a preview.
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
_SIGNATURE = "4dabf18193072939515e22adb298388d"
_SECRET = "1b47061264138c4ac30d75fd1eb44270"  # noqa: S105 - the mark of a secret, not one


def plain(bag: struct_pb2.Struct) -> dict[str, Any]:
    """A bag as data: secrets without their wrapping, whole numbers as integers."""
    data: dict[str, Any] = _plain(json_format.MessageToDict(bag))
    return data


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get(_SIGNATURE) == _SECRET:
            return _plain(value.get("value"))
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def bag(data: Mapping[str, Any]) -> struct_pb2.Struct:
    """Data as a bag."""
    struct = struct_pb2.Struct()
    struct.update(data)
    return struct


def is_unknown(value: Any) -> bool:
    """Whether a value, or something in it, is not known yet."""
    if isinstance(value, dict):
        return any(is_unknown(item) for item in value.values())
    if isinstance(value, list):
        return any(is_unknown(item) for item in value)
    return bool(value == UNKNOWN)


def values(data: Any, path: str) -> Iterator[Any]:
    """The values at a path such as ``routes.*.gatewayId``; none where a part is missing."""
    reached = [data]
    for part in path.split("."):
        reached = [inner for value in reached for inner in _step(value, part)]
    yield from (value for value in reached if value is not None)


def _step(value: Any, part: str) -> list[Any]:
    if isinstance(value, list):
        if part == "*":
            return value
        return [value[int(part)]] if part.isdigit() and int(part) < len(value) else []
    return [value[part]] if isinstance(value, dict) and part in value else []


def value(data: Any, path: str) -> Any:
    """The first value at a path; None without one."""
    return next(values(data, path), None)


def put(data: Any, path: str, new: Any) -> None:
    """Sets the value at a path; creates missing mappings on the way, and no list items."""
    *way, last = path.split(".")
    for part, after in zip(way, path.split(".")[1:], strict=True):
        if isinstance(data, list):
            if int(part) >= len(data):
                return
            data = data[int(part)]
        elif part not in data and after.isdigit():
            return
        else:
            data = data.setdefault(part, {})
    data[last] = new


def copy(data: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of a bag."""
    copied: dict[str, Any] = deepcopy(dict(data))
    return copied


def changed(olds: Any, news: Any, path: str = "") -> Iterator[str]:
    """The paths that differ between two bags; a list of another length differs as a whole."""
    if isinstance(olds, dict) and isinstance(news, dict):
        for key in sorted({*olds, *news}):
            if not key.startswith("__"):
                yield from changed(olds.get(key), news.get(key), f"{path}.{key}" if path else key)
    elif isinstance(olds, list) and isinstance(news, list) and len(olds) == len(news):
        for index, (old, new) in enumerate(zip(olds, news, strict=True)):
            yield from changed(old, new, f"{path}.{index}")
    elif olds != news:
        yield path


def plain_path(engine_path: str) -> str:
    """A path of the engine, such as ``a[0].b`` or ``tags["x"]``, with dots alone."""
    return re.sub(r"""\[(?:"([^"]*)"|([^\]]*))\]""", lambda part: f".{part[1] or part[2]}", engine_path).lstrip(".")


def general(path: str) -> str:
    """A path with ``*`` for each index."""
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def matches(path: str, pattern: str) -> bool:
    """Whether a path is equal to a pattern or below it; ``*`` matches any list index."""
    parts, wanted = path.split("."), pattern.split(".")
    return len(parts) >= len(wanted) and all(name in ("*", part) for part, name in zip(parts, wanted, strict=False))
