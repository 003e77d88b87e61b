"""One function for each kind of expression that the static reader understands."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator
from typing import Any

from tools.engines import calls, externals
from tools.engines.reader import Reader, Scope
from tools.engines.values import NONE_TYPE, UNION, UNKNOWN, Class, External, Function, Generic, is_type

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
_UNARY: dict[type[ast.AST], Callable[[Any], Any]] = {ast.Not: operator.not_, ast.USub: operator.neg}
_COMPARE: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    # The reader's values stand for objects: two that stand for the same object are equal, not identical.
    ast.Is: operator.eq,
    ast.IsNot: operator.ne,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_Comprehension = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp


def evaluate(evaluator: Reader, node: ast.expr, module: str, scope: Scope) -> Any:
    """The value of an expression; ``UNKNOWN`` for a kind that the reader does not know.

    Args:
        evaluator: of the wheel.
        node: the expression.
        module: its module.
        scope: the local names around it; ``:=`` adds to them.

    Raises:
        Exception: one of ``calls.FAULTS`` where the values do not fit the expression.
    """
    handler = _HANDLERS.get(type(node))
    return UNKNOWN if handler is None else handler(evaluator, node, module, scope)


def _name(evaluator: Reader, node: ast.Name, module: str, scope: Scope) -> Any:
    if node.id in scope:
        return scope[node.id]
    value = evaluator.name(module, node.id)
    builtin = externals.builtin(node.id)
    return builtin if value is UNKNOWN and builtin is not None else value


def _named(evaluator: Reader, node: ast.NamedExpr, module: str, scope: Scope) -> Any:
    scope[node.target.id] = evaluator.expression(node.value, module, scope)
    return scope[node.target.id]


def _attribute(evaluator: Reader, node: ast.Attribute, module: str, scope: Scope) -> Any:
    return evaluator.attribute(evaluator.expression(node.value, module, scope), node.attr)


def _subscript(evaluator: Reader, node: ast.Subscript, module: str, scope: Scope) -> Any:
    owner = evaluator.expression(node.value, module, scope)
    index = evaluator.expression(node.slice, module, scope)
    if isinstance(owner, External | Class):
        return externals.generic(owner, index)
    return UNKNOWN if owner is UNKNOWN or index is UNKNOWN else owner[index]


def _slice(evaluator: Reader, node: ast.Slice, module: str, scope: Scope) -> Any:
    parts = (node.lower, node.upper, node.step)
    return slice(*(None if part is None else evaluator.expression(part, module, scope) for part in parts))


def _binary(evaluator: Reader, node: ast.BinOp, module: str, scope: Scope) -> Any:
    left, right = (evaluator.expression(part, module, scope) for part in (node.left, node.right))
    if isinstance(node.op, ast.BitOr) and (is_type(left) or is_type(right)):
        return Generic(UNION, tuple(NONE_TYPE if part is None else part for part in (left, right)))
    return UNKNOWN if left is UNKNOWN or right is UNKNOWN else _BINARY[type(node.op)](left, right)


def _boolean(evaluator: Reader, node: ast.BoolOp, module: str, scope: Scope) -> Any:
    value: Any = None
    for part in node.values:
        value = evaluator.expression(part, module, scope)
        if value is UNKNOWN or bool(value) == isinstance(node.op, ast.Or):
            return value
    return value


def _unary(evaluator: Reader, node: ast.UnaryOp, module: str, scope: Scope) -> Any:
    value = evaluator.expression(node.operand, module, scope)
    return UNKNOWN if value is UNKNOWN else _UNARY[type(node.op)](value)


def _compare(evaluator: Reader, node: ast.Compare, module: str, scope: Scope) -> Any:
    left = evaluator.expression(node.left, module, scope)
    for op, comparator in zip(node.ops, node.comparators, strict=True):
        right = evaluator.expression(comparator, module, scope)
        if UNKNOWN in (left, right):
            return UNKNOWN
        if not _COMPARE[type(op)](left, right):
            return False
        left = right
    return True


def _conditional(evaluator: Reader, node: ast.IfExp, module: str, scope: Scope) -> Any:
    test = evaluator.expression(node.test, module, scope)
    return UNKNOWN if test is UNKNOWN else evaluator.expression(node.body if test else node.orelse, module, scope)


def _list(evaluator: Reader, node: ast.List | ast.Tuple | ast.Set, module: str, scope: Scope) -> list[Any]:
    items: list[Any] = []
    for element in node.elts:
        if isinstance(element, ast.Starred):
            items.extend(evaluator.iterate(evaluator.expression(element.value, module, scope)))
        else:
            items.append(evaluator.expression(element, module, scope))
    return items


def _dict(evaluator: Reader, node: ast.Dict, module: str, scope: Scope) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        if key is None:
            result.update(evaluator.expression(value, module, scope))
        else:
            result[evaluator.expression(key, module, scope)] = evaluator.expression(value, module, scope)
    return result


def _scopes(evaluator: Reader, node: _Comprehension, module: str, scope: Scope) -> Iterator[Scope]:
    """The local names for each round of a comprehension."""
    scopes: list[Scope] = [dict(scope)]
    for generator in node.generators:
        grown: list[Scope] = []
        for outer in scopes:
            for item in evaluator.iterate(evaluator.expression(generator.iter, module, outer)):
                inner = dict(outer)
                evaluator.assign(generator.target, item, module, inner)
                tests = [evaluator.expression(test, module, inner) for test in generator.ifs]
                if UNKNOWN in tests:
                    raise TypeError("a condition that is only known at run time")
                if all(tests):
                    grown.append(inner)
        scopes = grown
    yield from scopes


def _items(evaluator: Reader, node: ast.ListComp | ast.GeneratorExp | ast.SetComp, module: str, scope: Scope) -> Any:
    return [evaluator.expression(node.elt, module, inner) for inner in _scopes(evaluator, node, module, scope)]


def _pairs(evaluator: Reader, node: ast.DictComp, module: str, scope: Scope) -> Any:
    return {
        evaluator.expression(node.key, module, inner): evaluator.expression(node.value, module, inner)
        for inner in _scopes(evaluator, node, module, scope)
    }


def _joined(evaluator: Reader, node: ast.JoinedStr, module: str, scope: Scope) -> Any:
    parts = [evaluator.expression(part, module, scope) for part in node.values]
    return UNKNOWN if UNKNOWN in parts else "".join(str(part) for part in parts)


def _call(evaluator: Reader, node: ast.Call, module: str, scope: Scope) -> Any:
    function = evaluator.expression(node.func, module, scope)
    if function == External("builtins.super"):
        return calls.zero_super(scope)
    args: list[Any] = []
    for argument in node.args:
        if isinstance(argument, ast.Starred):
            args.extend(evaluator.iterate(evaluator.expression(argument.value, module, scope)))
        else:
            args.append(evaluator.expression(argument, module, scope))
    options: dict[str, Any] = {}
    for keyword in node.keywords:
        value = evaluator.expression(keyword.value, module, scope)
        options.update(value if keyword.arg is None else {keyword.arg: value})
    return evaluator.call(function, args, options)


_HANDLERS: dict[type[ast.expr], Callable[[Reader, Any, str, Scope], Any]] = {
    ast.Constant: lambda _, node, *__: node.value,
    ast.Name: _name,
    ast.NamedExpr: _named,
    ast.Attribute: _attribute,
    ast.Subscript: _subscript,
    ast.Slice: _slice,
    ast.BinOp: _binary,
    ast.BoolOp: _boolean,
    ast.UnaryOp: _unary,
    ast.Compare: _compare,
    ast.IfExp: _conditional,
    ast.List: _list,
    ast.Tuple: lambda *given: tuple(_list(*given)),
    ast.Set: lambda *given: set(_list(*given)),
    ast.Dict: _dict,
    ast.ListComp: _items,
    ast.GeneratorExp: _items,
    ast.SetComp: lambda *given: set(_items(*given)),
    ast.DictComp: _pairs,
    ast.JoinedStr: _joined,
    ast.FormattedValue: lambda evaluator, node, *around: evaluator.expression(node.value, *around),
    ast.Lambda: lambda _, node, module, scope: Function(module, node, scope),
    ast.Call: _call,
}
