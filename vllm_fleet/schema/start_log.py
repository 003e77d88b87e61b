"""The strict record of ``recipes/start_log.yml``: what vLLM logs of its own choices when it starts."""

from __future__ import annotations

from pydantic import Field

from vllm_fleet.schema.pattern import LongPattern
from vllm_fleet.schema.recipe import Strict


class LoggedChoice(Strict):
    """A line that names what vLLM has chosen."""

    line: LongPattern
    engine: str | None = None
    #: Kernel, as ``recipes/memory.yml`` calls it -> what the first group of the line may be.
    kernels: dict[str, list[str]] = Field(min_length=1)
    what: str = Field(min_length=3)
    source: str = Field(min_length=3)


class LoggedFallback(Strict):
    """A line that only a start with less than its recipe says has."""

    line: LongPattern
    engine: str | None = None
    arch: list[str] | None = None
    what: str = Field(min_length=3)
    source: str = Field(min_length=3)


class StartLog(Strict):
    """``recipes/start_log.yml``."""

    choices: list[LoggedChoice]
    fallbacks: list[LoggedFallback]
