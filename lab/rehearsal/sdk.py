"""The types of an SDK: the inputs of a resource, the required ones, and their types."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pulumi import _types

from lab.rehearsal.wire import is_unknown


@dataclass(frozen=True)
class Shape:
    """The inputs of a resource, or of a mapping inside one.

    Attributes:
        types: name on the wire -> its type in the SDK.
        required: the names of required inputs.
    """

    types: Mapping[str, Any]
    required: frozenset[str]


def sdk_version(plugin: str) -> str:
    """The version of a plugin's SDK, which is that of the plugin."""
    return version(f"pulumi-{plugin}")


def arguments(package: str, token: str) -> type:
    """The class of a resource's arguments, such as ``InstanceArgs`` for ``aws:ec2/instance:Instance``.

    Raises:
        LookupError: the SDK has no such resource.
    """
    _, module, name = token.split(":")
    part = module.split("/")[0].lower()
    place = package if part == "index" else f"{package}.{part}"
    try:
        home = getattr(import_module(place), name).__module__
        # ``InitArgs`` where the plain name is that of a mapping inside another resource.
        names = (getattr(import_module(home), f"{name}{end}", None) for end in ("Args", "InitArgs"))
        arguments_class: type = next(part for part in names if part is not None and part.__module__ == home)
    except (ImportError, AttributeError, StopIteration):
        raise LookupError(f"{package} has no {token}") from None
    return arguments_class


@cache
def shape(arguments_class: type) -> Shape:
    """The inputs of a class of arguments."""
    names = _types.input_type_py_to_pulumi_names(arguments_class)
    parameters = inspect.signature(arguments_class).parameters
    needed = {name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    return Shape(
        types=_types.input_type_types(arguments_class),
        required=frozenset(names[name] for name in needed if name in names),
    )


def check_inputs(
    arguments_class: type, inputs: Mapping[str, Any], open_lists: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """Yields the errors in inputs by the SDK's types, as (path, reason).

    Args:
        arguments_class: the class of the resource's arguments.
        inputs: the inputs from the program.
        open_lists: paths whose values may differ from the lists of the SDK.
    """
    yield from _mapping(arguments_class, inputs, "", frozenset(open_lists))


def _mapping(kind: type, data: Mapping[str, Any], at: str, open_lists: frozenset[str]) -> Iterator[tuple[str, str]]:
    known = shape(kind)
    for name in sorted(known.required - {key for key, value in data.items() if value is not None}):
        yield _at(at, name), "is required and is not given"
    for name, value in data.items():
        path = _at(at, name)
        if name not in known.types:
            yield path, f"is no property of {kind.__name__.removesuffix('Args')}"
        elif value is not None:
            yield from _value(known.types[name], value, path, open_lists)


def _at(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _value(kind: Any, value: Any, path: str, open_lists: frozenset[str]) -> Iterator[tuple[str, str]]:
    kind = bare(kind)
    if not isinstance(value, (dict, list)) and is_unknown(value):
        return
    if inspect.isclass(kind) and issubclass(kind, enum.Enum):
        listed = [part.value for part in kind]
        if value not in listed and re.sub(r"\.\d+", ".*", path) not in open_lists:
            yield path, f"is {value!r}, and may be: {', '.join(map(str, listed[:12]))}"
    elif inspect.isclass(kind) and _types.is_input_type(kind):
        if isinstance(value, dict):
            yield from _mapping(kind, value, path, open_lists)
        else:
            yield path, f"is {value!r}, and must be a mapping"
    elif get_origin(kind) in (Sequence, list) or kind is list:
        if not isinstance(value, list):
            yield path, f"is {value!r}, and must be a list"
            return
        (inner,) = get_args(kind) or (Any,)
        for index, part in enumerate(value):
            yield from _value(inner, part, f"{path}.{index}", open_lists)
    elif get_origin(kind) in (Mapping, dict):
        if not isinstance(value, dict):
            yield path, f"is {value!r}, and must be a mapping"
            return
        for key, part in value.items():
            yield from _value((get_args(kind) or (str, Any))[1], part, f"{path}.{key}", open_lists)
    elif kind in _SCALARS and not isinstance(value, _SCALARS[kind]):
        # A bool is an int in Python, not in a cloud.
        yield path, f"is {value!r}, and must be a {kind.__name__}"
    elif kind in (int, float) and isinstance(value, bool):
        yield path, f"is {value!r}, and must be a number"


_SCALARS: Mapping[Any, tuple[type, ...]] = {str: (str,), bool: (bool,), int: (int,), float: (int, float)}


def bare(kind: Any) -> Any:
    """A type without None, awaitables and outputs; of a string or an enumeration, the enumeration."""
    while get_origin(kind) in (Union, UnionType):
        parts = [part for part in get_args(kind) if part is not type(None) and "Awaitable" not in str(part)]
        parts = [part for part in parts if not str(part).startswith("pulumi.output.Output")]
        listed = [part for part in parts if inspect.isclass(part) and issubclass(part, enum.Enum)]
        classes = [part for part in parts if inspect.isclass(part) and _types.is_input_type(part)]
        kind = next(iter([*listed, *classes, *parts]), Any)
    return kind
