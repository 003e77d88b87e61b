"""The keys of vLLM's configuration classes, and their handling of unknown keys."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from tools.engines import fields
from tools.engines.evaluate import Evaluator
from tools.engines.values import Class, Function
from vllm_fleet.base.errors import FleetError

_DEPRECATED = re.compile(r"\[?deprecated\b", re.IGNORECASE)


def config_class(evaluator: Evaluator, name: str) -> Class:
    """The class of that name in ``vllm.config`` or one of its modules.

    Raises:
        FleetError: the release has no such class.
    """
    modules = ["vllm.config", "vllm.config.compilation", "vllm.config.speculative", "vllm.config.quantization"]
    for module in modules:
        if evaluator.sources.has(module):
            value = evaluator.name(module, name)
            if isinstance(value, Class):
                return value
    raise FleetError(f"the wheel has no class {name} in vllm.config")


def keys(evaluator: Evaluator, cls: Class) -> list[str]:
    """The keys that the class accepts, sorted, without fields that vLLM fills in itself."""
    return sorted(
        record.name for record in fields.records(evaluator, cls) if record.init and not record.name.startswith("_")
    )


def deprecated(evaluator: Evaluator, cls: Class) -> list[str]:
    """The keys whose documentation begins by saying that they are deprecated, sorted."""
    taken = set(keys(evaluator, cls))
    return sorted(
        record.name
        for record in fields.records(evaluator, cls)
        if record.name in taken and _DEPRECATED.match(record.doc)
    )


def extra(evaluator: Evaluator, cls: Class) -> str:
    """``forbid`` where an unknown key is an error, ``ignore`` where it is dropped silently.

    pydantic ignores unknown keys unless the class, or the wheel's own ``config`` decorator, says otherwise.
    """
    answer = "ignore"
    for decorator, node in fields.decorators(evaluator, cls):
        if isinstance(decorator, Function):
            answer = _extra_in(decorator.node) or answer
        if isinstance(node, ast.Call):
            answer = _extra_in(node) or answer
    return answer


def _extra_in(node: ast.AST) -> str | None:
    for call in _calls(node):
        if ast.unparse(call.func).endswith("ConfigDict"):
            for keyword in call.keywords:
                if keyword.arg == "extra" and isinstance(keyword.value, ast.Constant):
                    return str(keyword.value.value)
    return None


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    return (call for call in ast.walk(node) if isinstance(call, ast.Call))


def config_file_rules(evaluator: Evaluator) -> dict[str, str]:
    """How this release's ``--config`` file reader treats values that older releases did not know.

    Returns:
        ``mapping``: ``json`` where a mapping becomes a JSON argument, ``unusable`` where it becomes Python's own
        spelling, which no flag can parse. ``boolean_false``: ``negated`` where false becomes the ``--no-`` form,
        ``dropped`` where it vanishes. A reader that looks the ``--no-`` form up among its own options drops it too:
        under ``vllm serve`` it is the parser of ``vllm`` that reads the file, and the options are those of ``serve``.
    """
    module = next(m for m in ("vllm.utils.argparse_utils", "vllm.utils") if evaluator.sources.has(m))
    parser: Any = evaluator.name(module, "FlexibleArgumentParser")
    reader = fields.method(evaluator, parser, "load_config_file") or fields.method(
        evaluator, parser, "_load_config_file"
    )
    if reader is None:
        raise FleetError(f"{module} has no reader of --config files")
    code = ast.unparse(reader.node)
    return {
        "mapping": "json" if "json.dumps(value)" in code else "unusable",
        "boolean_false": "negated" if "--no-" in code and "self._option_string_actions" not in code else "dropped",
    }
