"""Checks every name of a deployment against the names that the release reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vllm_fleet.base import did_you_mean, yaml_reader
from vllm_fleet.base.errors import raise_all
from vllm_fleet.catalogue.engine_names import EngineNames
from vllm_fleet.resolve.parallelism import parallelism_errors
from vllm_fleet.resolve.provenance import Origin, error_at
from vllm_fleet.schema.recipe import Engine

#: Flags that the renderer sets for each instance; neither a rule nor an override may.
RENDERED_FLAGS = frozenset({"model", "served-model-name", "host", "port", "api-key", "config"})
#: Flags and variables that are secrets by their names: fleet.yml, the plan and files on the hosts would show them.
_PLACES_OF_SECRETS = {
    "hf-token": "give artifacts.models.MODEL.token_file: each host downloads with it",
    "HF_TOKEN": "give artifacts.models.MODEL.token_file: each host downloads with it",
    "VLLM_API_KEY": "the gateway checks the keys of the clients: gateway.api_keys_file",
}
#: Flags with which a model's repository could run code.
UNSAFE_FLAGS = frozenset({"trust-remote-code"})
#: Flags of which 0 would mean that nothing runs; the releases refuse it when they start.
COUNTS = frozenset(
    {
        "block-size",
        "max-long-partial-prefills",
        "max-num-batched-tokens",
        "max-num-partial-prefills",
        "max-num-seqs",
        "stream-interval",
    }
)
_PASSES = "compilation-config.pass_config"
_WHAT_IT_READS = "see recipes/engines/names for what it reads"


def check_names(
    names: EngineNames,
    engine: Engine,
    args: Mapping[str, Any],
    env: Mapping[str, Any],
    provenance: Mapping[str, Origin],
) -> None:
    """Checks every name, every value with a list of choices, and what spreads an instance further than planned.

    Raises:
        FleetError: names that the release does not read, and values that are not taken, with the places that set
            them; the first error carries the others.
    """
    raise_all(
        [
            *(error_at(provenance, key, what, hint) for key, what, hint in _name_faults(names, engine, args, env)),
            *parallelism_errors(names, args, env, provenance),
        ]
    )


def _name_faults(
    names: EngineNames, engine: Engine, args: Mapping[str, Any], env: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """The key, message and hint of each error."""

    def unread(group: str, name: str, what: str, known: Iterable[str]) -> tuple[str, str, str]:
        message = f"{engine.id} does not read the {what} {name!r}"
        return f"{group}.{name}", message, did_you_mean.hint(name, known, _WHAT_IT_READS)

    for name, value in args.items():
        key = f"args.{name}"
        if name in RENDERED_FLAGS:
            yield key, f"{name!r} is set for each instance by the project", "remove it"
        elif yaml_reader.is_secret_name(name):
            yield key, *_secret_fault(name)
        elif name in UNSAFE_FLAGS and value is not False:
            yield key, f"{name!r} lets the model's repository run code on the host", "remove it"
        elif name not in names.flags:
            yield unread("args", name, "flag", names.flags)
        elif fault := _value_fault(names, engine, name, value):
            yield key, *fault
    passes = args["compilation-config"].get("pass_config", {}) if _is_mapping(args, "compilation-config") else {}
    if not isinstance(passes, Mapping):
        yield f"args.{_PASSES}", f"{_PASSES!r} is {passes!r}, not a mapping", "write its keys below it"
        passes = {}
    for above, key, known in _unknown_keys(names, args, passes):
        yield unread("args", f"{above}.{key}", "key", (f"{above}.{other}" for other in known))
    for name in env:
        if yaml_reader.is_secret_name(name):
            yield f"env.{name}", *_secret_fault(name)
        elif name in names.env_dead_ends:
            message = f"{engine.id} makes nothing of the environment variable {name!r}: it is {names.why_unread(name)}"
            yield f"env.{name}", message, "remove it"
        elif not names.reads(f"env.{name}", engine.accelerator):
            yield unread("env", name, "environment variable", names.variables(engine.accelerator))


def _secret_fault(name: str) -> tuple[str, str]:
    """What is wrong with a secret among the arguments and variables, and what to do."""
    where = _PLACES_OF_SECRETS.get(name, "remove it: a process of vLLM gets no secret")
    return f"{name!r} is a secret, which fleet.yml, the plan and the hosts' files would show", where


def _value_fault(names: EngineNames, engine: Engine, name: str, value: Any) -> tuple[str, str] | None:
    """What is wrong with the value of a known flag, and what to do."""
    flag = names.flags[name]
    if value is False and not flag.get("negatable"):
        return f"{name!r} cannot be set to false", "leave it out (null removes it)"
    if flag["type"] in ("int", "float") and (isinstance(value, bool) or not isinstance(value, int | float)):
        return f"{name!r} is {value!r}, not a number", "write a number without quotes"
    if flag["type"] == "int" and isinstance(value, float):
        return f"{name} is {value!r}, not a whole number", "write it without a decimal point"
    if name in COUNTS and isinstance(value, int) and value < 1:
        return f"{name!r} is {value!r}: vLLM serves nothing then", "write 1 or more"
    choices = names.tool_call_parsers if name == "tool-call-parser" else flag.get("choices")
    if choices and flag["type"] != "list" and value not in choices:
        known = ", ".join(map(str, sorted(choices, key=str)))
        return f"{engine.id} does not take {value!r} for {name!r}", f"it takes {known}"
    return None


def _is_mapping(args: Mapping[str, Any], name: str) -> bool:
    return isinstance(args.get(name), Mapping)


def _unknown_keys(
    names: EngineNames, args: Mapping[str, Any], passes: Mapping[str, Any]
) -> Iterator[tuple[str, str, frozenset[str]]]:
    """Where a mapping is, a key in it that the release does not list, and those that it lists."""
    for flag, known in names.nested.items():
        if _is_mapping(args, flag):
            yield from ((flag, key, known) for key in args[flag] if key not in known)
    yield from ((_PASSES, key, names.pass_config) for key in passes if key not in names.pass_config)
