"""The names of the tool-call and reasoning parsers that a release ships: its command line takes any text for them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tools.engines.evaluate import Evaluator
from tools.engines.sources import module_of

_MANAGERS = {"tool": "ToolParserManager", "reasoning": "ReasoningParserManager"}


def names(evaluator: Evaluator, kind: str) -> list[str]:
    """The registered names, sorted.

    Args:
        evaluator: of the wheel's sources.
        kind: ``tool`` or ``reasoning``.
    """
    table = f"_{kind.upper()}_PARSERS_TO_REGISTER"
    names_so_far: set[str] = set()
    for path, content in sorted(evaluator.sources.files.items()):
        if table not in content and _MANAGERS[kind] not in content:
            continue
        module = module_of(path)
        if table in evaluator.sources.bindings(module):
            names_so_far |= set(evaluator.name(module, table))
        names_so_far |= set(_decorated(evaluator, module, _MANAGERS[kind]))
    return sorted(names_so_far)


def _decorated(evaluator: Evaluator, module: str, manager: str) -> Iterator[str]:
    """Names given to ``@Manager.register_module(...)`` above a class: one, a list, or the keyword ``name``."""
    for cls in ast.walk(evaluator.sources.tree(module)):
        if not isinstance(cls, ast.ClassDef):
            continue
        for node in cls.decorator_list:
            if isinstance(node, ast.Call) and ast.unparse(node.func) == f"{manager}.register_module":
                given = [*node.args, *(key.value for key in node.keywords if key.arg == "name")]
                value = evaluator.expression(given[0], module, {})
                yield from [value] if isinstance(value, str) else value
