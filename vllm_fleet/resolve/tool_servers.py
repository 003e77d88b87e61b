"""Refuses built-in tools that the engine would end over, or leave off without a word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue.engine_locks import Lock
from vllm_fleet.schema.recipe import Feature

FEATURE: Feature = "builtin-tools"
_FLAG = "tool-server"
#: The value for tools inside of the engine.
_DEMO = "demo"
#: What vLLM's client of tool servers imports (``MCPToolServer`` in vllm/entrypoints, 0.10.2 to 0.33.0).
_PACKAGE = "mcp"


def tool_server_errors(
    engine: str, lock: Lock | None, args: Mapping[str, Any], features: Sequence[Feature]
) -> Iterator[FleetError]:
    """What is wrong with the tool servers of a deployment.

    Args:
        engine: the id of the engine.
        lock: what the engine is installed from; None for an image, and for a wheel without a lock.
        args: the final arguments.
        features: what is asked for.
    """
    value = args.get(_FLAG)
    key = f"args.{_FLAG}" if value is not None else "--feature"
    if isinstance(value, str) and _DEMO in value.split(","):
        yield FleetError(
            f"{_FLAG} '{_DEMO}' runs the tools in the engine, whose lock has no gpt-oss: they would be off, silently",
            "name servers of your own, HOST:PORT,HOST:PORT; 'vllm-fleet recipe ... --show tools' prints their lines",
            key=key,
            code=ErrorCode.REFUSED,
        )
    asked = value is not None or FEATURE in features
    if asked and lock and _PACKAGE not in {pin.name for pin in lock.pins}:
        yield FleetError(
            f"{engine} cannot use tool servers: its lock has no {_PACKAGE}, and vLLM ends with 'mcp is not installed'",
            "take vllm-0.32.0 or newer",
            key=key,
            code=ErrorCode.REFUSED,
        )
