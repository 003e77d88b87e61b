"""Which zone a host is made in: the first of its pool's list, or the next one where the last try found no capacity.

A try is written down before the cloud is asked, and again with the cloud's answer. A host that exists stays where it
is, whatever this file says: the clouds' components ignore a change of zone. A try without an answer was cut off: the
host may exist, and may cost money, so it is not asked for once more before a person has looked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pulumi

from vllm_fleet.errors import FleetError
from vllm_fleet.files import write_atomically


def tries_file(directory: Path) -> Path:
    """Where the tries of a fleet are kept, beside its ``stack.json``."""
    return directory / "zones.json"


def read_tries(directory: Path) -> dict[str, dict[str, Any]]:
    """Host -> its last try: ``zone``, ``made``, and ``answered``, which older files do not have."""
    file = tries_file(directory)
    found: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def write_tries(directory: Path, tries: Mapping[str, Mapping[str, Any]]) -> None:
    """Keeps the tries."""
    write_atomically(tries_file(directory), json.dumps(tries, indent=2, sort_keys=True) + "\n")


class Zones:
    """The choice for all hosts of a fleet."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tries = read_tries(directory)
        self._chosen: dict[str, str] = {}
        self._binding: pulumi.ResourceHookBinding | None = None

    def choose(self, host: str, zones: tuple[str, ...]) -> str:
        """The zone for a host that is not made yet.

        Args:
            host: its name.
            zones: the pool's list, in the order to try.
        """
        last = self._tries.get(host, {})
        zone = str(last.get("zone"))
        if zone not in zones:
            return zones[0]
        return zone if last.get("made") else zones[(zones.index(zone) + 1) % len(zones)]

    def hooks(self, host: str, zone: str) -> pulumi.ResourceHookBinding:
        """What writes the try down, for the options of the resource that is the host.

        Args:
            host: its name, which is the resource's.
            zone: where it is tried.
        """
        self._chosen[host] = zone
        if self._binding is None:
            # The same for all hosts: each hook is a message to the engine.
            self._binding = pulumi.ResourceHookBinding(
                before_create=[pulumi.ResourceHook("zone-tried", lambda args: self._before(args.name))],
                after_create=[pulumi.ResourceHook("zone-taken", lambda args: self._note(args.name, True, True))],
                on_error=[pulumi.ErrorHook("zone-refused", self._failed)],
            )
        return self._binding

    def _before(self, host: str) -> None:
        last = self._tries.get(host, {})
        if not last.get("answered", True):
            raise FleetError(
                f"the last run was cut off while {host} was made in {last['zone']}: it may exist, and cost money",
                f"look for it in the cloud, then: python -m infra.repair {pulumi.get_stack()} --adopt {host}=ITS_ID"
                f", or --gone {host} where there is none",
            )
        self._note(host, made=False, answered=False)

    def _failed(self, args: pulumi.ErrorHookArgs) -> bool:
        """The cloud's answer was no; the engine need not try once more."""
        if args.failed_operation == "create":
            self._note(args.name, made=False, answered=True)
        return False

    def _note(self, host: str, made: bool, answered: bool) -> None:
        self._tries[host] = {"zone": self._chosen[host], "made": made, "answered": answered}
        write_tries(self._directory, self._tries)
