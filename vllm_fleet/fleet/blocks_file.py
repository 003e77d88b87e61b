"""``blocks.json`` of a fleet: the capacity blocks that its stack has bought, by pool. The stack writes it.

The provider forgets a block that has ended, and would buy it again: what is in this file is bought no second time.
"""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import FleetError, raise_all
from vllm_fleet.base.field_types import Line
from vllm_fleet.schema.recipe import Strict

FILE = "blocks.json"
_HINT = "restore the file: a block that is missing in it is bought again"


def parse_time(text: str) -> dt.datetime:
    """A point in time as AWS writes it, such as ``2026-12-01T11:30:00Z``.

    Raises:
        ValueError: it is none, or has no time zone.
    """
    found = dt.datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone: write it such as 2026-12-01T11:30:00Z")
    return found


def _time(text: str) -> str:
    parse_time(text)
    return text


class Block(Strict):
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


def load(directory: Path) -> dict[str, Block]:
    """Pool -> the block that was bought for it last; empty without a file.

    Args:
        directory: the fleet's folder.

    Raises:
        FleetError: the file cannot be read, or is wrong; the first error carries the others.
    """
    path = directory / FILE
    if not os.path.lexists(path):
        return {}
    errors: list[FleetError] = []
    blocks: dict[str, Block] = {}
    try:
        document = yaml_document.read_json(path)
        if not isinstance(document.data, dict):
            raise document.error((), "must be a mapping of pools and their capacity blocks")
        for name, data in document.data.items():
            try:
                blocks[name] = yaml_document.parse(document, Block, (name,), data)
            except FleetError as fault:
                errors += [fault, *fault.others]
    except FleetError as fault:
        errors.append(fault)
    for error in errors:
        error.hint = _HINT
    raise_all(errors)
    return blocks
