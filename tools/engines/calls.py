"""Calls and statements for the static reader: the wheel's own small functions, followed step by step."""

from __future__ import annotations

import ast
from typing import Any

from tools.engines import externals, fields
from tools.engines.reader import Reader, Scope
from tools.engines.sources import imported_modules, imported_names
from tools.engines.values import (
    UNKNOWN,
    Bound,
    Class,
    External,
    Function,
    Instance,
    NotStaticError,
    Super,
)

# A wheel's code may fail on stand-in values; such a failure means "not static".
FAULTS = (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError)
_DEEPEST = 40
_MUTATORS = {"append", "extend", "insert", "pop", "remove", "update", "setdefault", "clear", "add", "items"}


class _Returned(Exception):  # noqa: N818 - control flow, not an error
    """A ``return`` was reached."""

    def __init__(self, value: Any) -> None:
        super().__init__("return")
        self.value = value


def call(evaluator: Reader, function: Any, args: list[Any], options: dict[str, Any]) -> Any:
    """The result of a call, ``UNKNOWN`` where the reader does not know the function.

    Raises:
        NotStaticError: the function builds the argument parser and takes a path only known at run time.
    """
    if isinstance(function, Bound):
        return _method(evaluator, function, args, options)
    if isinstance(function, External):
        return _external(evaluator, function.dotted, args, options)
    if isinstance(function, Class):
        return _construct(evaluator, function, args)
    if isinstance(function, Function):
        dotted = f"{function.module}.{function.name}"
        if dotted in evaluator.replaced:
            return evaluator.replaced[dotted](*args, **options)
        try:
            return _run(evaluator, function, args, options)
        except (NotStaticError, *FAULTS) as error:
            # An error while the parser is built would lose options silently.
            if any(isinstance(arg, externals.Recorder) for arg in args):
                raise NotStaticError(f"{dotted}: {error}") from error
            return UNKNOWN
    return function(*args, **options) if callable(function) and function is not UNKNOWN else UNKNOWN


def _method(evaluator: Reader, bound: Bound, args: list[Any], options: dict[str, Any]) -> Any:
    if bound.name not in _MUTATORS and UNKNOWN in args:
        return UNKNOWN
    if bound.name == "join":
        args = [list(evaluator.iterate(args[0]))]
    return getattr(bound.value, bound.name)(*args, **options)


def _construct(evaluator: Reader, cls: Class, args: list[Any]) -> Any:
    if fields.is_enumeration(evaluator, cls) and args:
        return next((member for member in fields.members(evaluator, cls) if member.value == args[0]), UNKNOWN)
    if not args and "dict" in fields.outer_bases(evaluator, cls):
        return {}
    return Instance(cls)


def _external(evaluator: Reader, dotted: str, args: list[Any], options: dict[str, Any]) -> Any:
    name = dotted.rpartition(".")[2]
    if dotted == "dataclasses.fields":
        return fields.records(evaluator, args[0])
    if name == "is_dataclass":
        return fields.is_dataclass(evaluator, args[0])
    if dotted == "typing.is_typeddict":
        return isinstance(args[0], Class) and "TypedDict" in fields.outer_bases(evaluator, args[0])
    if dotted == "builtins.issubclass":
        outer = fields.outer_bases(evaluator, args[0]) if isinstance(args[0], Class) else {args[0].name}
        return args[1].name in outer
    if dotted in ("builtins.getattr", "builtins.hasattr"):
        attribute = evaluator.attribute(args[0], args[1])
        if name == "hasattr":
            return attribute is not UNKNOWN
        return args[2] if attribute is UNKNOWN and len(args) > 2 else attribute
    if dotted not in externals.CALLS or (UNKNOWN in args and dotted not in externals.LENIENT):
        return UNKNOWN
    if dotted in ("builtins.list", "builtins.tuple", "builtins.set", "builtins.sorted") and args:
        args = [list(evaluator.iterate(args[0])), *args[1:]]
    return externals.CALLS[dotted](*args, **options)


def _run(evaluator: Reader, function: Function, args: list[Any], options: dict[str, Any]) -> Any:
    node = function.node
    depth = function.scope.get("<depth>", 0) + 1
    if depth > _DEEPEST:
        raise NotStaticError(f"{function.name} calls itself without an end")
    scope: Scope = {**function.scope, "<depth>": depth, "<owner>": function.owner, "<bound>": function.bound}
    if function.bound is not None:
        args = [function.bound, *args]
    parameters = [*node.args.posonlyargs, *node.args.args]
    for parameter, default in zip(reversed(parameters), reversed(node.args.defaults), strict=False):
        scope[parameter.arg] = evaluator.expression(default, function.module, dict(function.scope))
    for parameter, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        if value is not None:
            scope[parameter.arg] = evaluator.expression(value, function.module, dict(function.scope))
    scope.update({parameter.arg: arg for parameter, arg in zip(parameters, args, strict=False)})
    scope.update(options)
    if isinstance(node, ast.Lambda):
        return evaluator.expression(node.body, function.module, scope)
    try:
        _block(evaluator, node.body, function.module, scope)
    except _Returned as returned:
        return returned.value
    return None


def assign(evaluator: Reader, target: ast.expr, value: Any, module: str, scope: Scope) -> None:
    """Binds a value to a name, to an item, or to the names of a tuple.

    Raises:
        NotStaticError: the target has another form, or the value does not fit it.
    """
    if isinstance(target, ast.Name):
        scope[target.id] = value
    elif isinstance(target, ast.Tuple | ast.List):
        if value is UNKNOWN:
            value = [UNKNOWN] * len(target.elts)
        for part, item in zip(target.elts, value, strict=True):
            assign(evaluator, part, item, module, scope)
    elif isinstance(target, ast.Subscript):
        owner = evaluator.expression(target.value, module, scope)
        if owner is UNKNOWN:
            raise NotStaticError(ast.unparse(target))
        owner[evaluator.expression(target.slice, module, scope)] = value
    elif not isinstance(target, ast.Attribute):
        raise NotStaticError(ast.unparse(target))


def _block(evaluator: Reader, body: list[ast.stmt], module: str, scope: Scope) -> None:
    for node in body:
        _statement(evaluator, node, module, scope)


def _statement(evaluator: Reader, node: ast.stmt, module: str, scope: Scope) -> None:
    if isinstance(node, ast.Return):
        raise _Returned(evaluator.expression(node.value, module, scope) if node.value else None)
    if isinstance(node, ast.Expr):
        evaluator.expression(node.value, module, scope)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        if node.value is not None:
            value = evaluator.expression(node.value, module, scope)
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                assign(evaluator, target, value, module, scope)
    elif isinstance(node, ast.AugAssign):
        sum_of = ast.copy_location(ast.BinOp(_loaded(node.target), node.op, node.value), node)
        assign(evaluator, node.target, evaluator.expression(sum_of, module, scope), module, scope)
    elif isinstance(node, ast.Delete):
        for target in node.targets:
            if not isinstance(target, ast.Subscript):
                raise NotStaticError(ast.unparse(target))
            del evaluator.expression(target.value, module, scope)[evaluator.expression(target.slice, module, scope)]
    elif isinstance(node, ast.If):
        test = evaluator.expression(node.test, module, scope)
        if test is UNKNOWN:
            raise NotStaticError(ast.unparse(node.test))
        _block(evaluator, node.body if test else node.orelse, module, scope)
    elif isinstance(node, ast.For):
        _loop(evaluator, node, module, scope)
    elif isinstance(node, ast.FunctionDef):
        scope[node.name] = Function(module, node, scope, scope.get("<owner>"))
    elif isinstance(node, ast.Import | ast.ImportFrom):
        bindings = imported_modules(node) if isinstance(node, ast.Import) else imported_names(node, module)
        scope.update({name: evaluator.bound(binding, module) for name, binding in bindings})
    elif isinstance(node, ast.With):
        _block(evaluator, node.body, module, scope)
    elif isinstance(node, ast.Try):
        _block(evaluator, [*node.body, *node.orelse, *node.finalbody], module, scope)
    elif not isinstance(node, ast.Pass | ast.Assert | ast.Global | ast.Nonlocal):
        raise NotStaticError(type(node).__name__)


def _loaded(target: ast.expr) -> ast.expr:
    return ast.parse(ast.unparse(target), mode="eval").body


def _loop(evaluator: Reader, node: ast.For, module: str, scope: Scope) -> None:
    items = evaluator.expression(node.iter, module, scope)
    if items is UNKNOWN:
        raise NotStaticError(ast.unparse(node.iter))
    for item in list(evaluator.iterate(items)):
        assign(evaluator, node.target, item, module, scope)
        _block(evaluator, node.body, module, scope)


def zero_super(scope: Scope) -> Any:
    """``super()`` inside a method."""
    return Super(scope["<owner>"], scope["<bound>"])
