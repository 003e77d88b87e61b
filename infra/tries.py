"""``zones.json`` of a fleet: the zone in which each host was last tried, and the result.

:mod:`infra.zones` writes it while Pulumi runs; :mod:`infra.adopt` corrects it after an operator has checked the cloud.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.fleet import zones_file


def tries_file(directory: Path) -> Path:
    """The file of a fleet's tries, beside its ``stack.json``."""
    return directory / zones_file.FILE


def read_tries(directory: Path) -> dict[str, dict[str, Any]]:
    """Host -> its last try.

    A try has ``zone`` and ``made``; in newer files also ``answered``, ``pool``, ``full`` (the zone had no capacity),
    ``limited`` (a limit of the account was reached) and ``run`` (the number of the run).

    Raises:
        FleetError: the file is wrong.
    """
    return zones_file.load(directory)


def write_tries(directory: Path, tries: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the tries."""
    write_atomically(tries_file(directory), json.dumps(tries, indent=2, sort_keys=True) + "\n")
