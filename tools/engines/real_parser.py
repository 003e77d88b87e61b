"""vLLM's own argument parser and environment table, asked directly. Runs under the Python of an engine environment.

    python real_parser.py dump           every flag and environment variable of the installed release, as JSON
    python real_parser.py parse FILE...  what `vllm serve --config FILE` would start with, one line of JSON for each

The second prints ``{"args": {...}}``, or ``{"error": "..."}`` (and ends with status 1) where vLLM refuses a file.
Nothing is loaded and nothing is served. Only the standard library and vLLM are imported: no part of this project.
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import functools
import importlib
import io
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

_STDERR = sys.stderr
_SERVE = "vllm.entrypoints.cli.serve"
_DEPRECATED = re.compile(r"\[deprecated\]|\bdeprecated[:.]|\bis deprecated|\bhas been deprecated", re.IGNORECASE)
_MANAGERS = {
    "tool_call_parsers": (("vllm.tool_parsers", "vllm.entrypoints.openai.tool_parsers"), "ToolParserManager"),
    "reasoning_parsers": (("vllm.reasoning",), "ReasoningParserManager"),
}
_TABLES = {"tool_call_parsers": "tool_parsers", "reasoning_parsers": "reasoning_parsers"}
_CONFIGS = {
    "pass_config": "PassConfig",
    "compilation_config": "CompilationConfig",
    "speculative_config": "SpeculativeConfig",
    "quantization_config": "QuantizationConfigArgs",
}


def _first_module(names: tuple[str, ...]) -> Any:
    for name in names:
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise ModuleNotFoundError(" or ".join(names))


def serve_parser() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The parser of ``vllm`` with its command ``serve``, built as ``vllm`` itself builds it, and that of ``serve``."""
    home = _first_module(("vllm.utils.argparse_utils", "vllm.utils"))
    parser = home.FlexibleArgumentParser(prog="vllm")
    commands = parser.add_subparsers(required=False, dest="subparser")
    (serve,) = importlib.import_module(_SERVE).cmd_init()
    return parser, serve.subparser_init(commands)


def value(item: Any) -> Any:
    """A value as JSON can hold it; objects of vLLM become ``{"object": name of the class}``."""
    if isinstance(item, enum.Enum):
        return item.value if isinstance(item.value, str | int) else item.name
    if item is None or isinstance(item, str | int | float | bool):
        return item
    if isinstance(item, dict):
        return {str(key): value(part) for key, part in item.items()}
    if isinstance(item, set | frozenset):
        return sorted((value(part) for part in item), key=str)
    if isinstance(item, list | tuple):
        return [value(part) for part in item]
    return {"object": type(item).__name__}


def type_name(kind: Any) -> tuple[str, bool]:
    """The type of an argument in the words of the manifests, and whether plain text is taken instead of JSON."""
    name = getattr(kind, "__name__", "")
    if name in ("_optional_type", "_parse_type"):
        free = dict(zip(kind.__code__.co_freevars, kind.__closure__, strict=True))
        return type_name(free["return_type"].cell_contents)
    if name == "union_dict_and_str":
        return "json", True
    if name in ("parse_dataclass", "loads"):
        return "json", False
    if name in ("human_readable_int", "human_readable_int_or_auto"):
        return "int", False
    return (name if name in ("int", "float", "bool") else "str"), False


def flag(action: argparse.Action, deprecated: bool) -> dict[str, Any]:
    """One option of the parser in the form of the manifests."""
    negatable = isinstance(action, argparse.BooleanOptionalAction)
    kind, text = type_name(action.type or str)
    record: dict[str, Any] = {}
    if negatable or isinstance(action, argparse._StoreTrueAction | argparse._StoreFalseAction):
        record["type"] = "bool"
    elif isinstance(action, argparse._AppendAction) or action.nargs in ("+", "*") or isinstance(action.nargs, int):
        if action.nargs != 0:
            record.update(type="list", items=kind)
    elif action.choices is not None:
        record["type"] = "enum"
    record.setdefault("type", kind)
    if action.choices is not None:
        choices = [value(choice) for choice in action.choices if choice not in (None, "None")]
        record["choices"] = sorted(choices)
    default = value(None if action.default is argparse.SUPPRESS else action.default)
    if not isinstance(default, dict) or "object" not in default:
        record["default"] = default
    long = [name for name in action.option_strings if name.startswith("--")]
    names = [name for name in action.option_strings if not (negatable and name.startswith("--no-"))]
    if aliases := sorted(name for name in names if name != long[0]):
        record["aliases"] = aliases
    record.update({"negatable": True} if negatable else {})
    record.update({"bare": True} if action.nargs == "?" else {})
    record.update({"text": True} if text else {})
    record.update({"deprecated": True} if deprecated else {})
    return record


def dump() -> dict[str, Any]:
    """Flags, environment table, keys of configuration classes and parsers of the installed release."""
    _, parser = serve_parser()
    marked: set[argparse.Action] = getattr(parser, "_deprecated", set())
    flags = {}
    for action in parser._actions:
        long = [name for name in action.option_strings if name.startswith("--")]
        if long and not isinstance(action, argparse._HelpAction):
            announced = type(action).__name__.startswith("Deprecated") or _DEPRECATED.search(action.help or "")
            flags[long[0][2:]] = flag(action, action in marked or bool(announced))
    envs = importlib.import_module("vllm.envs")
    record: dict[str, Any] = {"flags": flags, "env": {}}
    for name, read in envs.environment_variables.items():
        os.environ.clear()  # some readers put their default into the environment
        os.environ["HOME"] = "~"  # the manifests name paths under any home
        record["env"][name] = value(read())
    for key, name in _CONFIGS.items():
        cls = _config_class(name)
        if cls is not None:
            record[key] = sorted(_accepted(cls))
            record[f"{key}_extra"] = dict(getattr(cls, "__pydantic_config__", {}) or {}).get("extra", "ignore")
    for key, (modules, manager) in _MANAGERS.items():
        registry = getattr(_first_module(modules), manager)
        # Older releases hold a table and have no way to list it.
        names = registry.list_registered() if hasattr(registry, "list_registered") else getattr(registry, _TABLES[key])
        record[key] = sorted(names)
    return record


def _config_class(name: str) -> Any:
    for module in ("vllm.config", "vllm.config.compilation", "vllm.config.quantization"):
        with contextlib.suppress(ModuleNotFoundError):
            cls = getattr(importlib.import_module(module), name, None)
            if cls is not None:
                return cls
    return None


def _accepted(cls: Any) -> list[str]:
    """The keys that pydantic takes for the class, from its own schema."""
    return [name for name, info in cls.__pydantic_fields__.items() if info.init is not False]


def parse(path: str) -> dict[str, Any]:
    """What ``vllm serve --config path`` starts with.

    Args:
        path: a YAML file that holds the arguments, the model among them.
    """
    parser, _ = serve_parser()
    sys.argv = ["vllm", "serve", "--config", path]
    args = parser.parse_args(sys.argv[1:])
    (serve,) = importlib.import_module(_SERVE).cmd_init()
    serve.validate(args)
    return {"args": {name: value(item) for name, item in sorted(vars(args).items())}}


def _answer(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``ask`` gives, or ``{"error": ...}`` with vLLM's own words where it refuses."""
    captured = io.StringIO()
    with contextlib.redirect_stdout(sys.stderr), contextlib.redirect_stderr(captured):
        try:
            return ask()
        except (SystemExit, Exception) as error:
            refusals = [line.strip() for line in captured.getvalue().splitlines() if "error:" in line]
            return {"error": refusals[-1] if refusals else f"{type(error).__name__}: {error}"}
        finally:
            _STDERR.write(captured.getvalue())


def main(arguments: list[str]) -> int:
    """Runs one command; the JSON goes to standard output, everything that vLLM says to standard error.

    Returns:
        0, 1 where vLLM refused something, 2 for an unknown command.
    """
    if arguments == ["dump"]:
        # Help texts, and with them the notes on deprecation, are built only when the command line asks for help.
        sys.argv = ["vllm", "--help=all"]
        answers = [_answer(dump)]
    elif arguments[:1] == ["parse"] and len(arguments) > 1:
        answers = [_answer(functools.partial(parse, path)) for path in arguments[1:]]
    else:
        sys.stderr.write(__doc__ or "")
        return 2
    for answer in answers:
        sys.stdout.write(json.dumps(answer, sort_keys=True) + "\n")
    return 1 if any("error" in answer for answer in answers) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
