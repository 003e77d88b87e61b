"""Every environment variable that a release reads: vLLM's own table, and each other read in the wheel's sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tools.engines import fields
from tools.engines.evaluate import Evaluator
from tools.engines.flags import plain
from tools.engines.values import MISSING, Class, External

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_TABLE = "vllm.envs"
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def read_environment(evaluator: Evaluator) -> dict[str, Any]:
    """Each variable that the release reads, with its default where that is static and None elsewhere."""
    return {**other_reads(evaluator), **table(evaluator)}


def table(evaluator: Evaluator) -> dict[str, Any]:
    """Each variable of ``vllm.envs`` with the value that vLLM takes when nothing is set; None where not static."""
    declared = _declared_defaults(evaluator)
    found: dict[str, Any] = {}
    for name, reader in evaluator.name(_TABLE, "environment_variables").items():
        value = plain(evaluator.call(reader, [], {}))
        found[name] = declared.get(name) if value is MISSING else value
    return found


def _declared_defaults(evaluator: Evaluator) -> dict[str, Any]:
    """The defaults that the module declares for type checkers, for readers that cannot be followed."""
    found: dict[str, Any] = {}
    for node in ast.walk(evaluator.sources.tree(_TABLE)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if isinstance(node.value, ast.Constant):
                found.setdefault(node.target.id, node.value.value)
    return found


def other_reads(evaluator: Evaluator) -> dict[str, Any]:
    """Each variable that a file of the wheel reads from the environment by itself."""
    found: dict[str, Any] = {}
    for path in sorted(evaluator.sources.files):
        content = evaluator.sources.files[path]
        if "environ" not in content and "getenv" not in content:
            continue
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for read in _reads(evaluator.sources.tree(module)):
            default = MISSING if read.default is None else plain(evaluator.expression(read.default, module, {}))
            for name in _names(evaluator, read, module):
                if _NAME.match(name) and found.get(name) is None:
                    found[name] = None if default is MISSING else default
    return found


@dataclass(frozen=True)
class _Read:
    """One read of the environment: the expression of the name, of the default, and the functions around it."""

    name: ast.expr
    default: ast.expr | None
    functions: tuple[ast.FunctionDef | ast.AsyncFunctionDef, ...]


def _reads(tree: ast.Module) -> Iterator[_Read]:
    spellings = _spellings(tree)
    pending: list[tuple[ast.AST, tuple[ast.FunctionDef | ast.AsyncFunctionDef, ...]]] = [(tree, ())]
    while pending:
        node, functions = pending.pop()
        if isinstance(node, _FUNCTIONS):
            functions = (*functions, node)
        found = _read_of(node, spellings)
        if found:
            yield _Read(*found, functions)
        pending.extend((child, functions) for child in ast.iter_child_nodes(node))


def _spellings(tree: ast.Module) -> set[str]:
    """How this file may spell ``os.environ`` and ``os.getenv``."""
    found = {"os.environ", "os.getenv"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            found |= {alias.asname or alias.name for alias in node.names if alias.name in ("environ", "getenv")}
        elif isinstance(node, ast.Import):
            renamed = [alias.asname for alias in node.names if alias.name == "os" and alias.asname]
            found |= {f"{name}.{part}" for name in renamed for part in ("environ", "getenv")}
    return found


def _read_of(node: ast.AST, spellings: set[str]) -> tuple[ast.expr, ast.expr | None] | None:
    """The name and default that a node reads from the environment. ``setdefault`` counts: a set value stays."""
    if isinstance(node, ast.Call) and node.args:
        spelled = ast.unparse(node.func)
        owner, _, method = spelled.rpartition(".")
        if (spelled in spellings and spelled.endswith("getenv")) or (
            owner in spellings and method in ("get", "pop", "setdefault")
        ):
            default = node.args[1] if len(node.args) > 1 else None
            return node.args[0], next((key.value for key in node.keywords if key.arg == "default"), default)
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and ast.unparse(node.value) in spellings:
        return node.slice, None
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
        if ast.unparse(node.comparators[0]) in spellings:
            return node.left, None
    return None


def _names(evaluator: Evaluator, read: _Read, module: str) -> set[str]:
    """The names that the expression of a read can stand for."""
    value = evaluator.expression(read.name, module, {})
    if isinstance(value, str):
        return {value}
    if isinstance(value, External) and value.dotted.endswith(f"environment_variables.{value.name}"):
        return {value.name}  # OpenTelemetry's constants are called like the variables
    if isinstance(read.name, ast.Attribute):
        return set(_class_constants(evaluator, read.name.attr))
    if isinstance(read.name, ast.Name):
        for function in reversed(read.functions):
            if found := set(_local_values(evaluator, read.name.id, function, module)):
                return found
    return set()


def _class_constants(evaluator: Evaluator, attribute: str) -> Iterator[str]:
    """The texts that the wheel's platforms give to an attribute such as ``device_control_env_var``."""
    for path in evaluator.sources.files:
        if path.startswith("vllm/platforms/"):
            module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            for binding in evaluator.sources.bindings(module).values():
                if isinstance(binding.node, ast.ClassDef):
                    value = fields.class_attribute(evaluator, Class(module, binding.node), attribute)
                    if isinstance(value, str):
                        yield value


def _local_values(
    evaluator: Evaluator, name: str, function: ast.FunctionDef | ast.AsyncFunctionDef, module: str
) -> Iterator[str]:
    """The texts that a local name takes: by assignment, by a loop over texts, or as the argument of calls."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            yield from _texts(evaluator, node.value, module)
        elif isinstance(node, ast.For | ast.comprehension):
            if isinstance(node.target, ast.Name) and node.target.id == name:
                yield from _texts(evaluator, node.iter, module)
    parameters = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    if name in parameters:
        yield from _call_texts(evaluator, function.name, parameters, name)


def _texts(evaluator: Evaluator, node: ast.expr, module: str) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        yield from _class_constants(evaluator, node.attr)
    value = evaluator.expression(node, module, {})
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | set | dict):
        yield from (item for item in value if isinstance(item, str))


def _call_texts(evaluator: Evaluator, function: str, parameters: list[str], name: str) -> Iterator[str]:
    """The texts that calls of a function anywhere in the wheel give to one of its parameters."""
    position = parameters.index(name) - (parameters[0] in ("self", "cls"))
    for path, content in evaluator.sources.files.items():
        if f"{function}(" not in content:
            continue
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for node in ast.walk(evaluator.sources.tree(module)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == function:
                given = [key.value for key in node.keywords if key.arg == name]
                given += node.args[position : position + 1]
                for argument in given:
                    value = evaluator.expression(argument, module, {})
                    if isinstance(value, str):
                        yield value
