"""``zones.json`` of a fleet: the zone in which each host was last tried, and the result.

:mod:`infra.zones` writes it while Pulumi runs; :mod:`infra.adopt` corrects it after an operator has checked the cloud.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import FleetError
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


class TriesFile:
    """The file while a run writes it, for each host twice: what did not change is not rendered again."""

    def __init__(self, directory: Path, tries: Mapping[str, Mapping[str, Any]]) -> None:
        self._file = tries_file(directory)
        self._entries = {host: _entry(host, last_try) for host, last_try in tries.items()}

    def note(self, host: str, last_try: Mapping[str, Any]) -> None:
        """Writes the file with another try of one host."""
        self._entries[host] = _entry(host, last_try)
        self.write()

    def write(self) -> None:
        """Writes the file."""
        entries = ",\n".join(self._entries[host] for host in sorted(self._entries))
        write_atomically(self._file, f"{{\n{entries}\n}}\n" if entries else "{}\n")


def _entry(host: str, last_try: Mapping[str, Any]) -> str:
    """One host as ``json.dumps`` writes it within the whole, with an indent of two."""
    written = json.dumps({host: last_try}, indent=2, sort_keys=True)
    return written.removeprefix("{\n").removesuffix("\n}")


def write_tries(directory: Path, tries: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the tries."""
    TriesFile(directory, tries).write()


def interrupted(stack: str, names: Sequence[str], places: Sequence[str]) -> FleetError:
    """The error of creations that ended unseen.

    Args:
        stack: the stack.
        names: the resources, one at least.
        places: what to call each in the text.
    """
    it, exists, them = ("they", "they do", "them") if len(names) > 1 else ("it", "it does", "it")
    adopt = " ".join(f"--adopt {name}=ITS_ID" for name in names)
    return FleetError(
        f"the last run was interrupted while it created {' and '.join(places)}: {it} may exist and cost money",
        f"look for {them} in the cloud, then: python -m infra.repair {stack} {adopt}"
        f"; --gone NAME in place of --adopt if {exists} not exist",
    )
