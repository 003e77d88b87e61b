"""What the static reader knows of names from outside the wheel: constants, types and calls without side effects."""

from __future__ import annotations

import copy
import itertools
import json
import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tools.engines.values import (
    ANNOTATED,
    LITERAL,
    MISSING,
    NONE_TYPE,
    UNION,
    UNKNOWN,
    Class,
    External,
    FieldSpec,
    Function,
    Generic,
    Member,
)

# Options are read as if nothing were set and the whole help were asked for: vLLM loads the texts of its options,
# deprecation notes among them, only when the command line holds --help.
_CONSTANTS: dict[str, Any] = {
    "os.environ": {},
    "sys.argv": ["vllm", "--help=all"],
    "sys.version_info": (3, 12),
    "sys.platform": "linux",
    "ssl.CERT_NONE": 0,
    "typing.TYPE_CHECKING": False,
    "dataclasses.MISSING": MISSING,
}
_BUILTIN_TYPES: dict[str, type] = {
    t.__name__: t for t in (bool, bytes, dict, float, frozenset, int, list, object, set, str, tuple, type)
}
_BUILTIN_CALLS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (abs, all, any, enumerate, len, max, min, range, round, sorted, sum, zip)
}
_OTHER_BUILTINS = {"callable", "classmethod", "getattr", "hasattr", "isinstance", "issubclass", "next", "super"}
_TYPING_NAMES = {"Optional", "Union", "Literal", "Annotated", "List", "Dict", "Set", "Tuple", "Type"}


@dataclass
class Recorder:
    """Stands for the argument parser and its groups; remembers each ``add_argument`` call."""

    calls: list[tuple[tuple[str, ...], dict[str, Any]]] = field(default_factory=list)

    def add_argument(self, *names: str, **options: Any) -> None:
        """Remembers one option."""
        self.calls.append((names, options))

    def add_argument_group(self, *_: Any, **__: Any) -> Recorder:
        """A group records into its parser."""
        return self

    add_mutually_exclusive_group = add_argument_group

    def __deepcopy__(self, memo: object) -> Recorder:
        return self


def value(dotted: str) -> Any:
    """The constant behind a dotted name from outside the wheel, or an ``External`` that stands for it."""
    module, _, name = dotted.rpartition(".")
    if module in ("typing_extensions", "typing", "types", "collections.abc"):
        lowered = name.lower()
        if name == "UnionType":
            return UNION
        if module.startswith("typing") and lowered in _BUILTIN_TYPES and name in _TYPING_NAMES:
            return External(f"builtins.{lowered}")
        if module == "typing_extensions":
            dotted = f"typing.{name}"
    if dotted.startswith("pydantic.") and name in ("Field", "FieldInfo", "dataclass", "ConfigDict", "SkipValidation"):
        dotted = f"pydantic.{name}"
    constant = _CONSTANTS.get(dotted, External(dotted))
    return constant.copy() if isinstance(constant, dict | list) else constant


def builtin(name: str) -> External | None:
    """The builtin of that name, if the reader knows it."""
    known = name in _BUILTIN_TYPES or name in _BUILTIN_CALLS or name in _OTHER_BUILTINS
    return External(f"builtins.{name}") if known else None


def attribute(owner: External, name: str) -> Any:
    """``owner.name`` of a name from outside the wheel."""
    if name == "__module__":
        return owner.dotted.rpartition(".")[0]
    if name == "__name__":
        return owner.name
    return value(f"{owner.dotted}.{name}")


def generic(owner: External | Class, index: Any) -> Any:
    """``owner[index]`` of a type."""
    args = index if isinstance(index, tuple) else (index,)
    dotted = owner.dotted if isinstance(owner, External) else ""
    if dotted not in ("typing.Literal",):
        # Lists are inside Callable[[...], ...]; a type must stay hashable.
        args = tuple(NONE_TYPE if arg is None else tuple(arg) if isinstance(arg, list) else arg for arg in args)
    if dotted == "typing.Optional":
        return Generic(UNION, (*args, NONE_TYPE))
    if dotted == "pydantic.SkipValidation":
        return Generic(ANNOTATED, args)
    return Generic(owner, args)


def type_of(item: Any) -> Any:
    """``type(item)``."""
    if item is None:
        return NONE_TYPE
    if isinstance(item, Member):
        return item.owner
    return External(f"builtins.{type(item).__name__}") if type(item).__name__ in _BUILTIN_TYPES else UNKNOWN


def is_instance(item: Any, kinds: Any) -> Any:
    """``isinstance(item, kinds)``; ``UNKNOWN`` for kinds that the reader has no values of."""
    answers = [_is_one(item, kind) for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
    return True if True in answers else UNKNOWN if UNKNOWN in answers else False


def _is_one(item: Any, kind: Any) -> Any:
    if item is UNKNOWN:
        return UNKNOWN
    if kind == External("builtins.type"):
        return isinstance(item, Class) or (isinstance(item, External) and item.dotted.startswith("builtins."))
    if kind == External("pydantic.FieldInfo"):
        return False  # fields come with their pydantic default already taken out
    if isinstance(kind, External) and kind.name in _BUILTIN_TYPES:
        return isinstance(item, _BUILTIN_TYPES[kind.name])
    return UNKNOWN


def origin(item: Any) -> Any:
    """``typing.get_origin(item)``."""
    return item.origin if isinstance(item, Generic) else None


def arguments(item: Any) -> tuple[Any, ...]:
    """``typing.get_args(item)``: unions and literals flattened."""
    if not isinstance(item, Generic):
        return ()
    if item.origin not in (UNION, LITERAL):
        return item.args
    flat: list[Any] = []
    for arg in item.args:
        parts = arguments(arg) if isinstance(arg, Generic) and arg.origin == item.origin else (arg,)
        flat.extend(part for part in parts if part not in flat)
    return tuple(flat)


def _field_call(*args: Any, **options: Any) -> FieldSpec:
    known = {key: options[key] for key in ("default", "default_factory", "init") if key in options}
    if args and args[0] is not Ellipsis:
        known["default"] = args[0]
    return FieldSpec(**known)


def _first(items: Any, *default: Any) -> Any:
    return items[0] if items else default[0] if default else UNKNOWN


CALLS: dict[str, Callable[..., Any]] = {
    **{f"builtins.{name}": call for name, call in _BUILTIN_CALLS.items()},
    **{f"builtins.{name}": kind for name, kind in _BUILTIN_TYPES.items() if name not in ("object", "type")},
    "builtins.next": _first,
    "builtins.type": type_of,
    "builtins.isinstance": is_instance,
    "builtins.callable": lambda item: isinstance(item, Function | External | Class),
    "typing.get_origin": origin,
    "typing.get_args": arguments,
    "typing.cast": lambda _, item: item,
    "dataclasses.field": _field_call,
    "pydantic.Field": _field_call,
    "copy.deepcopy": copy.deepcopy,
    "copy.copy": copy.copy,
    "itertools.permutations": itertools.permutations,
    "itertools.chain": itertools.chain,
    "json.loads": json.loads,
    "os.getenv": lambda _, default=None: default,
    "os.path.join": posixpath.join,
    "os.path.dirname": posixpath.dirname,
    "os.path.expanduser": lambda path: path,
    "os.path.exists": lambda _: False,
}
# Calls that mean something even when an argument is only known at run time.
LENIENT = {"builtins.isinstance", "dataclasses.field", "pydantic.Field", "os.getenv", "copy.deepcopy", "typing.cast"}
