"""``zones.json`` of a fleet: in which zone each host was last tried, and what the cloud answered.

:mod:`infra.zones` writes it while Pulumi runs; :mod:`infra.adopt` corrects it after a person has looked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_fleet.base.atomic_files import write_atomically


def tries_file(directory: Path) -> Path:
    """Where the tries of a fleet are kept, beside its ``stack.json``."""
    return directory / "zones.json"


def read_tries(directory: Path) -> dict[str, dict[str, Any]]:
    """Host -> its last try.

    ``zone``, ``made``, and what older files do not have: ``answered``, ``pool``, ``full`` (the answer was that the zone
    has no capacity) and ``run`` (its number).
    """
    file = tries_file(directory)
    tries: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return tries


def write_tries(directory: Path, tries: Mapping[str, Mapping[str, Any]]) -> None:
    """Keeps the tries."""
    write_atomically(tries_file(directory), json.dumps(tries, indent=2, sort_keys=True) + "\n")
