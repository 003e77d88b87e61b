"""``zones.json`` of a fleet: the zone in which each host was last tried, and the result. The stack writes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import FleetError, raise_all
from vllm_fleet.base.field_types import Line
from vllm_fleet.schema.recipe import Strict

FILE = "zones.json"
#: A try without a result is all that says that a host may exist.
_HINT = "restore the file; before you remove it, look in the cloud for hosts whose creation was interrupted"


class ZoneTry(Strict):
    """The last try of one host.

    Attributes:
        zone: where it was requested.
        made: whether it exists.
        answered: whether the cloud has answered; newer files have this and the others.
        pool: the pool of the host.
        full: whether the zone had no capacity.
        limited: whether a limit of the account was reached.
        run: the number of the run.
    """

    zone: Line
    made: bool
    answered: bool = True
    pool: Line | None = None
    full: bool = False
    limited: bool = False
    run: Annotated[int, Field(ge=0)] = 0


def load(directory: Path) -> dict[str, dict[str, Any]]:
    """Host -> its last try, with the keys of :class:`ZoneTry` that the file has; empty without a file.

    Raises:
        FleetError: the file cannot be read, or is wrong; the first error carries the others.
    """
    path = directory / FILE
    if not os.path.lexists(path):
        return {}
    errors: list[FleetError] = []
    tries: dict[str, dict[str, Any]] = {}
    try:
        document = yaml_document.read_json(path)
        if not isinstance(document.data, dict):
            raise document.error((), "must be a mapping of hosts and their last tries")
        for name, data in document.data.items():
            if data is None:
                errors.append(document.error((name,), "is empty, and must be a mapping"))
                continue
            try:
                found = yaml_document.parse(document, ZoneTry, (name,), data)
                tries[name] = found.model_dump(exclude_unset=True)
            except FleetError as fault:
                errors += [fault, *fault.others]
    except FleetError as fault:
        errors.append(fault)
    for error in errors:
        error.hint = _HINT
    raise_all(errors)
    return tries
