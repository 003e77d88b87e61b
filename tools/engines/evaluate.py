"""Evaluates expressions of a wheel's sources without importing or running them.

What is static (literals, types, tables, defaults, calls of the wheel's own small functions) becomes a value; what
only exists at run time becomes ``UNKNOWN``. Environment variables count as unset and ``sys.argv`` as ``--help=all``,
so that texts of help are read too.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from tools.engines import calls, externals, fields
from tools.engines.sources import Binding, Sources
from tools.engines.values import (
    NONE_TYPE,
    UNION,
    UNKNOWN,
    Bound,
    Class,
    External,
    FieldRecord,
    Function,
    Generic,
    Member,
    Module,
    NotStaticError,
    Super,
    is_type,
)

Scope = MutableMapping[str, Any]

_BINARY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
}
_COMPARE: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.eq,
    ast.IsNot: operator.ne,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}

@dataclass
class Evaluator:
    """Gives expressions and names of one wheel their values.

    Attributes:
        sources: the wheel's sources.
        device: what ``current_platform.device_type`` is in this build (``cuda`` also for ROCm, or ``cpu``).
        replaced: functions of the wheel, by dotted name, that the reader answers itself.
    """

    sources: Sources
    device: str = "cuda"
    replaced: dict[str, Callable[..., Any]] = field(default_factory=dict)
    _names: dict[tuple[str, str], Any] = field(default_factory=dict)

    def name(self, module: str, name: str) -> Any:
        """The value of a module-level name; ``UNKNOWN`` when the wheel does not say."""
        key = (module, name)
        if key not in self._names:
            self._names[key] = UNKNOWN  # stops circular definitions
            self._names[key] = self._resolve(module, name)
        return self._names[key]

    def _resolve(self, module: str, name: str) -> Any:
        binding = self.sources.bindings(module).get(name)
        if binding is None:
            if self.sources.has(f"{module}.{name}"):
                return Module(f"{module}.{name}")
            return self._dynamic_name(module, name)
        return self.bound(binding, module)

    def bound(self, binding: Binding, module: str) -> Any:
        """The value of a binding found in ``module``."""
        if binding.kind == "module":
            return Module(binding.module) if self.sources.has(binding.module) else External(binding.module)
        if binding.kind == "name":
            if self.sources.has(binding.module):
                return self.name(binding.module, binding.attribute)
            return externals.value(f"{binding.module}.{binding.attribute}")
        if isinstance(binding.node, ast.ClassDef):
            return Class(module, binding.node)
        if isinstance(binding.node, ast.FunctionDef | ast.AsyncFunctionDef):
            return Function(module, binding.node)
        assert isinstance(binding.node, ast.expr)
        return self.expression(binding.node, module, {})

    def _dynamic_name(self, module: str, name: str) -> Any:
        """Names behind a module's ``__getattr__``: the environment table, and the current platform."""
        if name == "current_platform":
            return External("vllm.platforms.current_platform")
        if "environment_variables" in self.sources.bindings(module):
            table = self.name(module, "environment_variables")
            if isinstance(table, dict) and name in table:
                return self.call(table[name], [], {})
        return UNKNOWN

    def expression(self, node: ast.expr, module: str, scope: Scope) -> Any:
        """The value of an expression that stands in ``module`` with the local names of ``scope``."""
        try:
            return getattr(self, f"_{type(node).__name__}")(node, module, scope)
        except calls.FAULTS as error:
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_argument"):
                raise NotStaticError(f"{module}:{node.lineno}: an option that cannot be read: {error}") from error
            return UNKNOWN

    def text(self, annotation: str, module: str) -> Any:
        """The value of an annotation that is written as text."""
        return self.expression(ast.parse(annotation, mode="eval").body, module, {})

    def _Constant(self, node: ast.Constant, module: str, scope: Scope) -> Any:  # noqa: ARG002, N802 - named after nodes
        return node.value

    def _Name(self, node: ast.Name, module: str, scope: Scope) -> Any:  # noqa: N802
        if node.id in scope:
            return scope[node.id]
        value = self.name(module, node.id)
        builtin = externals.builtin(node.id)
        return builtin if value is UNKNOWN and builtin is not None else value

    def _NamedExpr(self, node: ast.NamedExpr, module: str, scope: Scope) -> Any:  # noqa: N802
        scope[node.target.id] = self.expression(node.value, module, scope)
        return scope[node.target.id]

    def _Attribute(self, node: ast.Attribute, module: str, scope: Scope) -> Any:  # noqa: N802
        return self.attribute(self.expression(node.value, module, scope), node.attr)

    def attribute(self, owner: Any, name: str) -> Any:
        """``owner.name`` for any value of the reader."""
        if isinstance(owner, Module):
            return self.name(owner.name, name)
        if isinstance(owner, Class):
            return fields.class_attribute(self, owner, name)
        if isinstance(owner, Super):
            found = fields.method(self, owner.owner, name, skip_own=True)
            return found if found is None else Function(found.module, found.node, {}, found.owner, owner.bound)
        if isinstance(owner, External):
            if owner.dotted == "vllm.platforms.current_platform":
                return self.device if name == "device_type" else UNKNOWN
            return externals.attribute(owner, name)
        if isinstance(owner, Member):
            return {"value": owner.value, "name": owner.name}.get(name, UNKNOWN)
        if isinstance(owner, FieldRecord | externals.Recorder):
            return getattr(owner, name)
        if isinstance(owner, Generic) and name == "__module__":
            return "builtins" if getattr(owner.origin, "dotted", "").startswith("builtins.") else "typing"
        if isinstance(owner, str | list | dict | tuple | set | frozenset | int | float | bool):
            return Bound(owner, name)
        return UNKNOWN

    def _Subscript(self, node: ast.Subscript, module: str, scope: Scope) -> Any:  # noqa: N802
        owner = self.expression(node.value, module, scope)
        index = self.expression(node.slice, module, scope)
        if isinstance(owner, External | Class):
            return externals.generic(owner, index)
        if owner is UNKNOWN or index is UNKNOWN:
            return UNKNOWN
        return owner[index]

    def _Slice(self, node: ast.Slice, module: str, scope: Scope) -> Any:  # noqa: N802
        parts = (node.lower, node.upper, node.step)
        return slice(*(None if part is None else self.expression(part, module, scope) for part in parts))

    def _BinOp(self, node: ast.BinOp, module: str, scope: Scope) -> Any:  # noqa: N802
        left, right = self.expression(node.left, module, scope), self.expression(node.right, module, scope)
        if isinstance(node.op, ast.BitOr) and (is_type(left) or is_type(right)):
            return Generic(UNION, tuple(NONE_TYPE if part is None else part for part in (left, right)))
        if left is UNKNOWN or right is UNKNOWN:
            return UNKNOWN
        return _BINARY[type(node.op)](left, right)

    def _BoolOp(self, node: ast.BoolOp, module: str, scope: Scope) -> Any:  # noqa: N802
        value: Any = None
        for part in node.values:
            value = self.expression(part, module, scope)
            if value is UNKNOWN or bool(value) == isinstance(node.op, ast.Or):
                return value
        return value

    def _UnaryOp(self, node: ast.UnaryOp, module: str, scope: Scope) -> Any:  # noqa: N802
        value = self.expression(node.operand, module, scope)
        if value is UNKNOWN:
            return UNKNOWN
        return {ast.Not: operator.not_, ast.USub: operator.neg}[type(node.op)](value)  # type: ignore[index]

    def _Compare(self, node: ast.Compare, module: str, scope: Scope) -> Any:  # noqa: N802
        left = self.expression(node.left, module, scope)
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.expression(comparator, module, scope)
            if UNKNOWN in (left, right):
                return UNKNOWN
            if not _COMPARE[type(op)](left, right):
                return False
            left = right
        return True

    def _IfExp(self, node: ast.IfExp, module: str, scope: Scope) -> Any:  # noqa: N802
        test = self.expression(node.test, module, scope)
        if test is UNKNOWN:
            return UNKNOWN
        return self.expression(node.body if test else node.orelse, module, scope)

    def _List(self, node: ast.List | ast.Tuple | ast.Set, module: str, scope: Scope) -> list[Any]:  # noqa: N802
        items: list[Any] = []
        for element in node.elts:
            if isinstance(element, ast.Starred):
                items.extend(self.iterate(self.expression(element.value, module, scope)))
            else:
                items.append(self.expression(element, module, scope))
        return items

    def _Tuple(self, node: ast.Tuple, module: str, scope: Scope) -> tuple[Any, ...]:  # noqa: N802
        return tuple(self._List(node, module, scope))

    def _Set(self, node: ast.Set, module: str, scope: Scope) -> set[Any]:  # noqa: N802
        return set(self._List(node, module, scope))

    def _Dict(self, node: ast.Dict, module: str, scope: Scope) -> dict[Any, Any]:  # noqa: N802
        result: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                result.update(self.expression(value, module, scope))
            else:
                result[self.expression(key, module, scope)] = self.expression(value, module, scope)
        return result

    def iterate(self, value: Any) -> Iterator[Any]:
        """Goes through a value that is known; the members of an enumeration included.

        Raises:
            TypeError: the value cannot be gone through, or is only known at run time.
        """
        return iter(fields.members(self, value)) if isinstance(value, Class) else iter(value)

    def _comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp, module: str, scope: Scope
    ) -> Iterator[Scope]:
        scopes: list[Scope] = [dict(scope)]
        for generator in node.generators:
            grown: list[Scope] = []
            for outer in scopes:
                for item in self.iterate(self.expression(generator.iter, module, outer)):
                    inner = dict(outer)
                    self.assign(generator.target, item, module, inner)
                    tests = [self.expression(test, module, inner) for test in generator.ifs]
                    if UNKNOWN in tests:
                        raise TypeError("a condition that is only known at run time")
                    if all(tests):
                        grown.append(inner)
            scopes = grown
        yield from scopes

    def _ListComp(self, node: ast.ListComp, module: str, scope: Scope) -> Any:  # noqa: N802
        return [self.expression(node.elt, module, inner) for inner in self._comprehension(node, module, scope)]

    _GeneratorExp = _ListComp

    def _SetComp(self, node: ast.SetComp, module: str, scope: Scope) -> Any:  # noqa: N802
        return {self.expression(node.elt, module, inner) for inner in self._comprehension(node, module, scope)}

    def _JoinedStr(self, node: ast.JoinedStr, module: str, scope: Scope) -> Any:  # noqa: N802
        parts = [self.expression(part, module, scope) for part in node.values]
        return UNKNOWN if UNKNOWN in parts else "".join(str(part) for part in parts)

    def _FormattedValue(self, node: ast.FormattedValue, module: str, scope: Scope) -> Any:  # noqa: N802
        return self.expression(node.value, module, scope)

    def _Lambda(self, node: ast.Lambda, module: str, scope: Scope) -> Function:  # noqa: N802
        return Function(module, node, scope)

    def _Call(self, node: ast.Call, module: str, scope: Scope) -> Any:  # noqa: N802
        function = self.expression(node.func, module, scope)
        if function == External("builtins.super"):
            return calls.zero_super(scope)
        args: list[Any] = []
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                args.extend(self.iterate(self.expression(argument.value, module, scope)))
            else:
                args.append(self.expression(argument, module, scope))
        options: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self.expression(keyword.value, module, scope)
            options.update(value if keyword.arg is None else {keyword.arg: value})
        return self.call(function, args, options)

    def call(self, function: Any, args: list[Any], options: dict[str, Any]) -> Any:
        """The result of a call; see ``calls.call``."""
        return calls.call(self, function, args, options)

    def assign(self, target: ast.expr, value: Any, module: str, scope: Scope) -> None:
        """Binds a value; see ``calls.assign``."""
        calls.assign(self, target, value, module, scope)
