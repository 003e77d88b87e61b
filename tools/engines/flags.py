"""The flags of ``vllm serve`` as one record each, from the ``add_argument`` calls of a release."""

from __future__ import annotations

import re
from typing import Any

from tools.engines import fields
from tools.engines.evaluate import Evaluator
from tools.engines.externals import Recorder
from tools.engines.values import MISSING, UNKNOWN, Class, External, Function, Member, NotStaticError
from vllm_fleet.base.errors import FleetError

# The module of make_arg_parser moves between releases.
_PARSER_MODULES = (
    "vllm.entrypoints.common.cli_args",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.entrypoints.openai.cli_args",
)
_DEPRECATED = re.compile(r"\[deprecated\]|\bdeprecated[:.]|\bis deprecated|\bhas been deprecated", re.IGNORECASE)
_NUMBERS = {"human_readable_int": "int", "human_readable_int_or_auto": "int"}
_WRAPPERS = {"_optional_type", "_parse_type"}


def read_flags(evaluator: Evaluator) -> dict[str, dict[str, Any]]:
    """Each flag by its first long name without dashes.

    A record has ``type`` (bool, int, float, str, json, list, enum) and where they apply: ``items`` (type of a list's
    items), ``choices``, ``default`` (absent where it is made at run time), ``aliases``, ``negatable`` (there is a
    ``--no-`` form), ``bare`` (needs no value), ``text`` (json that may also be plain text), ``deprecated``.

    Raises:
        FleetError: the release builds its parser in a way that the reader does not know.
    """
    sources = evaluator.sources
    module = next((name for name in _PARSER_MODULES if sources.has(name)), None)
    if module is None or "make_arg_parser" not in sources.bindings(module):
        raise FleetError("the wheel has no make_arg_parser where it is expected", f"looked in {_PARSER_MODULES}")
    recorder = Recorder()
    try:
        built = evaluator.call(evaluator.name(module, "make_arg_parser"), [recorder], {})
    except NotStaticError as error:
        raise FleetError(f"{module}.make_arg_parser cannot be read without running it: {error}") from error
    if built is not recorder:
        raise FleetError(f"{module}.make_arg_parser cannot be followed to its end")
    flags: dict[str, dict[str, Any]] = {}
    for names, options in recorder.calls:
        long = [name[2:] for name in names if name.startswith("--")]
        if long:  # the positional argument (the model) is no flag
            flags[long[0]] = _record(names, long[0], options)
    return flags


def _record(names: tuple[str, ...], name: str, options: dict[str, Any]) -> dict[str, Any]:
    action = options.get("action")
    kind, text = _type(options.get("type", External("builtins.str")))
    choices = options.get("choices")
    items = None
    if action in ("store_true", "store_false") or action == External("argparse.BooleanOptionalAction"):
        kind = "bool"
    elif action == "append" or options.get("nargs") in ("+", "*") or isinstance(options.get("nargs"), int):
        items, kind = kind, "list"
    elif choices not in (None, UNKNOWN):
        kind = "enum"
    record: dict[str, Any] = {"type": kind, **({"items": items} if items else {})}
    if isinstance(choices, list | tuple) and UNKNOWN not in choices:
        record["choices"] = sorted(plain(choice) for choice in choices if choice not in (None, "None"))
    default = options.get("default", False if action == "store_true" else None)
    if default == External("argparse.SUPPRESS"):
        default = None
    if (settled := plain(default)) is not MISSING:
        record["default"] = settled
    if aliases := [alias for alias in names if alias != f"--{name}"]:
        record["aliases"] = sorted(aliases)
    if action == External("argparse.BooleanOptionalAction"):
        record["negatable"] = True
    if options.get("nargs") == "?":
        record["bare"] = True
    if text:
        record["text"] = True
    if _is_deprecated(action, options):
        record["deprecated"] = True
    return record


def _is_deprecated(action: Any, options: dict[str, Any]) -> bool:
    help_text = options.get("help")
    return (
        options.get("deprecated") is True
        or (isinstance(action, Class) and action.name.startswith("Deprecated"))
        or (isinstance(help_text, str) and bool(_DEPRECATED.search(help_text)))
    )


def _type(kind: Any) -> tuple[str, bool]:
    """The name of an argument's type, and whether plain text is taken instead of JSON."""
    if isinstance(kind, Function):
        if kind.name in _WRAPPERS:
            return _type(kind.scope["return_type"])
        if kind.name == "union_dict_and_str":
            return "json", True
        if kind.name == "parse_dataclass":
            return "json", False
        return _NUMBERS.get(kind.name, "str"), False
    if kind == External("json.loads"):
        return "json", False
    if isinstance(kind, External) and kind.name in ("int", "float", "bool"):
        return kind.name, False
    return "str", False


def plain(value: Any) -> Any:
    """The value as YAML can hold it; ``MISSING`` where it is not static.

    A member of an enumeration becomes its value where that is a word or a number, else its name.
    """
    if isinstance(value, Member):
        return value.value if isinstance(value.value, str | int) else value.name
    if isinstance(value, list | tuple | set | frozenset):
        items = [plain(item) for item in value]
        if MISSING in items:
            return MISSING
        return sorted(items) if isinstance(value, set | frozenset) else items
    if isinstance(value, dict):
        items = [*map(plain, value), *map(plain, value.values())]
        return MISSING if MISSING in items else {plain(key): plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, str | int | float | bool) else MISSING


def attribute_docs(evaluator: Evaluator, cls: Class) -> dict[str, str]:
    """The documentation of each field of a dataclass, as vLLM's ``get_attr_docs`` gives it."""
    return {record.name: record.doc for record in fields.records(evaluator, cls)}
