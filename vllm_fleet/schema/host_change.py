"""The strict records of ``recipes/host_changes.yml``: what a change in place does to a host that runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vllm_fleet.schema.recipe import Line, Strict

Effect = Literal["stops", "restarts", "refused"]


class HostChange(Strict):
    """What the change of one input does."""

    effect: Effect
    #: The value for which it does not hold.
    unless: Line | None = None
    source: str = Field(min_length=10)


class HostChanges(Strict):
    """``recipes/host_changes.yml``."""

    #: Type of the resource, as the engine names it -> path of the input, ``*`` for any index -> what its change does.
    types: dict[Line, dict[Line, HostChange]]
