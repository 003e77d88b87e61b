"""Checks every name of a deployment against the names that the release reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.engine_names import EngineNames
from vllm_fleet.resolve.provenance import Origin
from vllm_fleet.schema.recipe import Engine

#: Flags that the renderer sets for each instance; neither a rule nor an override may.
RENDERED_FLAGS = frozenset({"model", "served-model-name", "host", "port", "api-key", "config"})
#: Flags with which a model's repository could run code.
UNSAFE_FLAGS = frozenset({"trust-remote-code"})
_PASSES = "compilation-config.pass_config"


def check_names(
    names: EngineNames,
    engine: Engine,
    args: Mapping[str, Any],
    env: Mapping[str, Any],
    provenance: Mapping[str, Origin],
) -> None:
    """Checks every name, and every value with a list of choices.

    Raises:
        FleetError: a name that the release does not read, with the place that sets it.
    """

    def error(key: str, message: str, hint: str) -> FleetError:
        origin = next(o for name, o in provenance.items() if name == key or name.startswith(f"{key}."))
        return FleetError(message, hint, origin.place, key=key)

    def unread(group: str, name: str, what: str) -> FleetError:
        message = f"{engine.id} does not read the {what} {name!r}"
        return error(f"{group}.{name}", message, "see recipes/engines/names for what it reads")

    for name, value in args.items():
        key = f"args.{name}"
        if name in RENDERED_FLAGS:
            raise error(key, f"{name!r} is set for each instance by the project", "remove it")
        if name in UNSAFE_FLAGS and value is not False:
            raise error(key, f"{name!r} lets the model's repository run code on the host", "remove it")
        if name not in names.flags:
            raise unread("args", name, "flag")
        flag = names.flags[name]
        if value is False and not flag.get("negatable"):
            raise error(key, f"{name!r} cannot be set to false", "leave it out (null removes it)")
        if flag["type"] in ("int", "float") and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise error(key, f"{name!r} is {value!r}, not a number", "write a number without quotes")
        choices = names.tool_call_parsers if name == "tool-call-parser" else flag.get("choices")
        if choices and flag["type"] != "list" and value not in choices:
            known = ", ".join(map(str, sorted(choices, key=str)))
            raise error(key, f"{engine.id} does not take {value!r} for {name!r}", f"it takes {known}")
    passes = args["compilation-config"].get("pass_config", {}) if _is_mapping(args, "compilation-config") else {}
    if not isinstance(passes, Mapping):
        raise error(f"args.{_PASSES}", f"{_PASSES!r} is {passes!r}, not a mapping", "write its keys below it")
    for name in _unknown_keys(names, args, passes):
        raise unread("args", name, "key")
    for name in env:
        if not names.reads(f"env.{name}", engine.accelerator):
            raise unread("env", name, "environment variable")


def _is_mapping(args: Mapping[str, Any], name: str) -> bool:
    return isinstance(args.get(name), Mapping)


def _unknown_keys(names: EngineNames, args: Mapping[str, Any], passes: Mapping[str, Any]) -> Iterator[str]:
    """Dotted keys inside mappings that the release does not list."""
    for flag, known in names.nested.items():
        if _is_mapping(args, flag):
            yield from (f"{flag}.{key}" for key in args[flag] if key not in known)
    yield from (f"{_PASSES}.{key}" for key in passes if key not in names.pass_config)
