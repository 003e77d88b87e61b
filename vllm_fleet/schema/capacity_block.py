"""A capacity block that a stack has bought, as ``stack.json`` has it.

The provider forgets a block that has ended, and would buy it again: what ``stack.json`` has is bought no second time.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated

from pydantic import AfterValidator

from vllm_fleet.base.field_types import Line
from vllm_fleet.schema.recipe import Strict


def parse_time(text: str) -> dt.datetime:
    """A point in time as AWS writes it, such as ``2026-12-01T11:30:00Z``.

    Raises:
        ValueError: the text is not a point in time, or has no time zone.
    """
    found = dt.datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone: write it such as 2026-12-01T11:30:00Z")
    return found


def _time(text: str) -> str:
    parse_time(text)
    return text


class CapacityBlock(Strict):
    """A capacity block.

    Attributes:
        offering: the offering that was bought.
        id: the block's own id.
        zone: where its instances are.
        starts: when instances can be launched in it.
        ends: when AWS ends them.
    """

    offering: Line
    id: Line
    zone: Line
    starts: Annotated[Line, AfterValidator(_time)]
    ends: Annotated[Line, AfterValidator(_time)]

    def begun(self, now: dt.datetime) -> bool:
        """Whether instances can be launched, or could be."""
        return parse_time(self.starts) <= now

    def ended(self, now: dt.datetime) -> bool:
        """Whether its time is over."""
        return parse_time(self.ends) <= now
