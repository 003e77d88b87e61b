"""The values of the static reader: what an expression in a wheel can mean without running the wheel."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class NotStaticError(Exception):
    """The code takes a path that depends on something only known at run time."""


@dataclass(frozen=True)
class Unknown:
    """A value that only exists at run time. Operations on it give it again."""

    def __deepcopy__(self, memo: object) -> Unknown:
        return self


UNKNOWN = Unknown()


class Missing:
    """What ``dataclasses.MISSING`` is in the wheel's code: no default, or no value to write down."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Any = Missing()


@dataclass(frozen=True)
class External:
    """A name from outside the wheel: the standard library, pydantic, torch, a builtin."""

    dotted: str

    @property
    def name(self) -> str:
        """The last part of the dotted name."""
        return self.dotted.rpartition(".")[2]


@dataclass(frozen=True)
class Module:
    """A module inside the wheel, or a package's part of one."""

    name: str


@dataclass(frozen=True, eq=False)
class Class:
    """A class that the wheel defines. Two are equal when they are the same definition."""

    module: str
    node: ast.ClassDef

    @property
    def name(self) -> str:
        """The class's own name."""
        return self.node.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Class) and other.node is self.node

    def __hash__(self) -> int:
        return id(self.node)

    def __deepcopy__(self, memo: object) -> Class:
        return self


@dataclass(frozen=True, eq=False)
class Function:
    """A function or lambda that the wheel defines, with what it closes over and what it is bound to."""

    module: str
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    scope: Mapping[str, Any] = field(default_factory=dict)
    owner: Class | None = None
    bound: Any = None

    @property
    def name(self) -> str:
        """The function's own name, ``<lambda>`` for a lambda."""
        return "<lambda>" if isinstance(self.node, ast.Lambda) else self.node.name

    def __deepcopy__(self, memo: object) -> Function:
        return self


@dataclass(frozen=True)
class Generic:
    """A subscripted type: ``list[int]``, ``Literal["a"]``, or a union of types."""

    origin: Any
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Member:
    """A member of an enumeration of the wheel."""

    owner: Class
    name: str
    value: Any


@dataclass(frozen=True)
class Instance:
    """An object of a class of the wheel; only its class is known."""

    owner: Class


@dataclass(frozen=True)
class Bound:
    """A method of a plain Python value (``"a".upper``), not called yet."""

    value: Any
    name: str


@dataclass(frozen=True)
class Super:
    """``super()`` inside a method: attributes are looked up after ``owner`` in the bases of ``bound``."""

    owner: Class
    bound: Any


@dataclass(frozen=True)
class FieldSpec:
    """A ``dataclasses.field(...)`` or ``pydantic.Field(...)`` call."""

    default: Any = MISSING
    default_factory: Any = MISSING
    init: bool = True


@dataclass(frozen=True)
class FieldRecord:
    """A field of a dataclass, with the attribute names that ``dataclasses.Field`` has."""

    name: str
    type: Any
    default: Any
    default_factory: Any
    init: bool
    doc: str


NONE_TYPE = External("builtins.NoneType")
UNION = External("typing.Union")
LITERAL = External("typing.Literal")
ANNOTATED = External("typing.Annotated")


def is_type(value: object) -> bool:
    """Whether the value stands for a type, so that ``|`` on it makes a union."""
    return isinstance(value, External | Class | Generic)
