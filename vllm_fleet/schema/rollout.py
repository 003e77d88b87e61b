"""The strict record of ``rollout`` in a fleet.yml: in which steps a change reaches the hosts."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated

from pydantic import AfterValidator, Field

from vllm_fleet.base.field_types import Line
from vllm_fleet.schema.gates import GateName
from vllm_fleet.schema.recipe import Strict

_SHARE = re.compile(r"(100|[1-9][0-9]?)%")


def _size(value: int | str) -> int | str:
    if isinstance(value, int):
        if value < 1:
            raise ValueError("a batch has at least 1 host")
    elif not _SHARE.fullmatch(value):
        raise ValueError(f"{value!r} is no size of a batch: write a number of hosts, or a share such as 25%")
    return value


Size = Annotated[int | str, AfterValidator(_size)]


class Rollout(Strict):
    """In which steps a change reaches the hosts that serve."""

    batches: list[Size] = Field(
        default=[1, 3, "25%", "100%"],
        min_length=1,
        max_length=20,
        description="How many hosts with the same release follow each other, each step after the one before it was "
        "accepted: numbers, or shares of these hosts. The last one repeats.",
    )
    max_unavailable: Size = Field(
        default="25%",
        description="How many of the hosts that serve one model may be out of traffic at the same time: a number, or a "
        "share, of which one host is the least.",
    )
    restarted: date | None = Field(
        default=None,
        description="A day. When you change it, every instance restarts once, in the steps of a rollout: vLLM keeps "
        "the responses of gateway.responses_store in memory until then.",
    )
    waive: dict[GateName, Line] = Field(
        default={},
        description="Gates that a release need not pass on this fleet: gate -> the reason. The gates are those of "
        "recipes/gates.yml. Default: it must pass all of them.",
    )


def hosts_of(size: int | str, total: int) -> int:
    """How many hosts a size means.

    Args:
        size: a number, or a share in percent.
        total: of how many hosts.

    Returns:
        At least one; a share is rounded down.
    """
    return size if isinstance(size, int) else max(1, total * int(size.rstrip("%")) // 100)
