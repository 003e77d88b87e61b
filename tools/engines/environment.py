"""Every environment variable that a release reads: vLLM's own table, and other reads in the wheel's sources."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tools.engines import fields
from tools.engines.dead_ends import DeadEnds
from tools.engines.evaluate import Evaluator
from tools.engines.flags import plain
from tools.engines.sources import module_of
from tools.engines.values import MISSING, Class, External

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_VARIABLE = re.compile(r"\bVLLM_[A-Z0-9_]+\b")
_TABLE = "vllm.envs"
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def read_environment(evaluator: Evaluator) -> dict[str, Any]:
    """Each variable that the release reads, with its default where that is static and None elsewhere."""
    return {**other_reads(evaluator), **table(evaluator)}


def table(evaluator: Evaluator) -> dict[str, Any]:
    """Each variable of ``vllm.envs`` with the value that vLLM takes when nothing is set; None where not static."""
    variables: dict[str, Any] = {}
    for name, read in evaluator.name(_TABLE, "environment_variables").items():
        value = plain(evaluator.call(read, [], {}))
        variables[name] = None if value is MISSING else value
    return variables


def unused(evaluator: Evaluator) -> list[str]:
    """The variables of vLLM's table that the wheel does not use: setting one silently has no effect.

    A name counts as used when any other file holds it, compiled files included, or when a second place in the table's
    own file reads it. Names that are not vLLM's own (``CUDA_HOME``) are left out: other libraries read them. So are
    those for ROCm: the compiled files of a ROCm build, which may read them, are not in the wheel.
    """
    held = set(evaluator.sources.binary_names)
    home = evaluator.sources.path(_TABLE)
    for path, content in evaluator.sources.files.items():
        if path != home:
            held.update(_VARIABLE.findall(content))
    again = Counter(name for read in _reads(evaluator.sources.tree(_TABLE)) for name in _names(evaluator, read, _TABLE))
    own = [name for name in table(evaluator) if name.startswith("VLLM_") and not name.startswith("VLLM_ROCM_")]
    return sorted(name for name in own if name not in held and again[name] < 2)


def dead_ends(evaluator: Evaluator) -> dict[str, str]:
    """Variables of vLLM that are read into a name that nothing in the wheel reads further, with that name."""
    own = [name for name in table(evaluator) if name.startswith("VLLM_")]
    return DeadEnds(evaluator.sources, _TABLE).find(own)


def other_reads(evaluator: Evaluator) -> dict[str, Any]:
    """Each variable that a file of the wheel reads without the table."""
    variables: dict[str, Any] = {}
    for path in sorted(evaluator.sources.files):
        content = evaluator.sources.files[path]
        if "environ" not in content and "getenv" not in content:
            continue
        module = module_of(path)
        for read in _reads(evaluator.sources.tree(module)):
            default = MISSING if read.default is None else plain(evaluator.expression(read.default, module, {}))
            for name in _names(evaluator, read, module):
                if _NAME.match(name) and variables.get(name) is None:
                    variables[name] = None if default is MISSING else default
    return variables


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
        read = _read_of(node, spellings)
        if read:
            yield _Read(*read, functions)
        pending.extend((child, functions) for child in ast.iter_child_nodes(node))


def _spellings(tree: ast.Module) -> set[str]:
    """How this file may spell ``os.environ`` and ``os.getenv``."""
    spellings = {"os.environ", "os.getenv"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            spellings |= {alias.asname or alias.name for alias in node.names if alias.name in ("environ", "getenv")}
        elif isinstance(node, ast.Import):
            renamed = [alias.asname for alias in node.names if alias.name == "os" and alias.asname]
            spellings |= {f"{name}.{part}" for name in renamed for part in ("environ", "getenv")}
    return spellings


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
    if (
        isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.In | ast.NotIn)
        and ast.unparse(node.comparators[0]) in spellings
    ):
        return node.left, None
    return None


def _names(evaluator: Evaluator, read: _Read, module: str) -> set[str]:
    """The names that the expression of a read can mean."""
    value = evaluator.expression(read.name, module, {})
    if isinstance(value, str):
        return {value}
    if isinstance(value, External) and value.dotted.endswith(f"environment_variables.{value.name}"):
        return {value.name}  # OpenTelemetry's constants are called like the variables
    if isinstance(read.name, ast.Attribute):
        return set(_class_constants(evaluator, read.name.attr))
    if isinstance(read.name, ast.Name):
        for function in reversed(read.functions):
            if local_names := set(_local_values(evaluator, read.name.id, function, module)):
                return local_names
    return set()


def _class_constants(evaluator: Evaluator, attribute: str) -> Iterator[str]:
    """The texts that the wheel's platforms give to an attribute such as ``device_control_env_var``."""
    for path in evaluator.sources.files:
        if path.startswith("vllm/platforms/"):
            module = module_of(path)
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
        elif isinstance(node, ast.For | ast.comprehension) and ast.unparse(node.target) == name:
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
        module = module_of(path)
        for node in ast.walk(evaluator.sources.tree(module)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == function:
                given = [key.value for key in node.keywords if key.arg == name]
                given += node.args[position : position + 1]
                for argument in given:
                    value = evaluator.expression(argument, module, {})
                    if isinstance(value, str):
                        yield value
