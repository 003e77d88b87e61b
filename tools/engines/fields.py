"""Classes of a wheel: their bases, attributes, dataclass fields with defaults and documentation."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from typing import Any

from tools.engines.reader import Reader
from tools.engines.values import (
    MISSING,
    UNKNOWN,
    Class,
    External,
    FieldRecord,
    FieldSpec,
    Function,
    Generic,
    Member,
)

# A default that is there, but made when the program runs: it is compared with MISSING, so it must not be UNKNOWN.
_AT_RUN_TIME = External("<at run time>")
_ENUM_BASES = {"Enum", "IntEnum", "StrEnum", "Flag", "IntFlag"}


def bases(evaluator: Reader, cls: Class) -> list[Class]:
    """The class and its bases inside the wheel, nearest first, each once."""
    line = [cls]
    for node in cls.node.bases:
        base = evaluator.expression(node, cls.module, {})
        base = base.origin if isinstance(base, Generic) else base
        if isinstance(base, Class):
            line += [cls_above for cls_above in bases(evaluator, base) if cls_above not in line]
    return line


def outer_bases(evaluator: Reader, cls: Class) -> set[str]:
    """The last parts of the names of all bases outside the wheel."""
    names: set[str] = set()
    for owner in bases(evaluator, cls):
        for node in owner.node.bases:
            base = evaluator.expression(node, owner.module, {})
            base = base.origin if isinstance(base, Generic) else base
            if isinstance(base, External):
                names.add(base.name)
    return names


def is_enumeration(evaluator: Reader, cls: Class) -> bool:
    """Whether the class is an ``enum.Enum`` of some kind, or has a metaclass that makes it one."""
    metaclasses = [key.value for key in cls.node.keywords if key.arg == "metaclass"]
    return bool(outer_bases(evaluator, cls) & _ENUM_BASES) or any("Enum" in ast.unparse(node) for node in metaclasses)


def members(evaluator: Reader, cls: Class) -> list[Member]:
    """The members of an enumeration in the order of their definition.

    Raises:
        TypeError: the class is no enumeration.
    """
    if not is_enumeration(evaluator, cls):
        raise TypeError(f"{cls.name} is no enumeration")
    members_so_far = []
    for node in cls.node.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if not name.startswith("_"):
                value = evaluator.expression(node.value, cls.module, {})
                members_so_far.append(Member(cls, name, value))
    return members_so_far


def decorators(evaluator: Reader, cls: Class) -> Iterator[tuple[Any, ast.expr]]:
    """Each decorator of the class as its value (the called function, where it is called) and its expression."""
    for node in cls.node.decorator_list:
        called = node.func if isinstance(node, ast.Call) else node
        yield evaluator.expression(called, cls.module, {}), node


def is_dataclass(evaluator: Reader, cls: Any) -> bool:
    """Whether the value is a class with ``@dataclass``, or with a decorator of the wheel called ``config``."""
    return isinstance(cls, Class) and any(
        getattr(decorator, "name", "") in ("dataclass", "config")
        for owner in bases(evaluator, cls)
        for decorator, _ in decorators(evaluator, owner)
    )


def method(evaluator: Reader, cls: Class, name: str, *, skip_own: bool = False) -> Function | None:
    """The method of that name, bound to the class where it is a class method; None without such a method."""
    for owner in bases(evaluator, cls)[1 if skip_own else 0 :]:
        for node in owner.node.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                kinds = {ast.unparse(decorator) for decorator in node.decorator_list}
                return Function(owner.module, node, {}, owner, cls if "classmethod" in kinds else None)
    return None


def class_attribute(evaluator: Reader, cls: Class, name: str) -> Any:
    """``cls.name``: documentation, a registry, a member, a method, or the default of a field."""
    if registry := evaluator.registries.get(f"{cls.name}.{name}"):
        return registry()
    if name == "__name__":
        return cls.name
    if name == "__module__":
        return cls.module
    if name == "__doc__":
        return ast.get_docstring(cls.node)
    if is_enumeration(evaluator, cls):
        for member in members(evaluator, cls):
            if member.name == name:
                return member
    if bound := method(evaluator, cls, name):
        return bound
    for owner in bases(evaluator, cls):
        for target, node in _assignments(owner):
            if target == name:
                value = evaluator.expression(node, owner.module, _class_constants(owner))
                return _default(value)[0] if isinstance(value, FieldSpec) else value
    return UNKNOWN


def records(evaluator: Reader, cls: Class) -> list[FieldRecord]:
    """The fields of a dataclass, those of its bases first, as ``dataclasses.fields`` gives them."""
    by_name: dict[str, FieldRecord] = {}
    for owner in reversed(bases(evaluator, cls)):
        for node, following in zip(owner.node.body, [*owner.node.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign):
                record = _record(evaluator, owner, node, following)
                if record:
                    by_name[record.name] = record
    return list(by_name.values())


def _record(evaluator: Reader, owner: Class, node: ast.AnnAssign, following: ast.stmt | None) -> FieldRecord | None:
    hint = evaluator.expression(node.annotation, owner.module, {})
    if isinstance(hint, str):
        hint = evaluator.text(hint, owner.module)
    kind = hint.origin if isinstance(hint, Generic) else hint
    if isinstance(kind, External) and kind.name in ("ClassVar", "InitVar"):
        return None
    value = MISSING
    if node.value is not None:
        value = evaluator.expression(node.value, owner.module, _class_constants(owner))
    default, factory, init = value, MISSING, True
    if isinstance(value, FieldSpec):
        default, factory = _default(value)
        init = value.init
    doc = ""
    if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
        doc = inspect.cleandoc(str(following.value.value))
    if default is UNKNOWN:
        default = _AT_RUN_TIME
    return FieldRecord(ast.unparse(node.target), hint, default, factory, init, doc)


def _class_constants(owner: Class) -> dict[str, Any]:
    """The names in a class body that stand for a literal: defaults of fields may refer to them."""
    return {name: node.value for name, node in _assignments(owner) if isinstance(node, ast.Constant)}


def _assignments(owner: Class) -> Iterator[tuple[str, ast.expr]]:
    """Each name that the class body gives a value to, with the expression of the value."""
    for node in owner.node.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    yield target.id, node.value


def _default(spec: FieldSpec) -> tuple[Any, Any]:
    if spec.default_factory is MISSING:
        return spec.default, MISSING
    return MISSING, spec.default_factory
