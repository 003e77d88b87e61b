"""Which zone a host is made in: the first of its pool's list, or the next one where the last try found no capacity.

A try is written down before the cloud is asked and again when the host is there. A host that exists stays where it
is, whatever this file says: the clouds' components ignore a change of zone.
"""

from __future__ import annotations

import json
from pathlib import Path

import pulumi

from vllm_fleet.files import write_atomically


class Zones:
    """The choice for all hosts of a fleet, kept in ``zones.json`` beside its ``stack.json``."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "zones.json"
        self._tries: dict[str, dict[str, object]] = {}
        self._chosen: dict[str, str] = {}
        self._binding: pulumi.ResourceHookBinding | None = None
        if self._file.is_file():
            self._tries = json.loads(self._file.read_text(encoding="utf-8"))

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
        """What writes the try down, for the options of the resource that may find no capacity.

        Args:
            host: its name, which is the resource's.
            zone: where it is tried.
        """
        self._chosen[host] = zone
        if self._binding is None:
            # One pair for all hosts: each hook is a message to the engine.
            self._binding = pulumi.ResourceHookBinding(
                before_create=[pulumi.ResourceHook("zone-tried", lambda args: self._note(args.name, made=False))],
                after_create=[pulumi.ResourceHook("zone-taken", lambda args: self._note(args.name, made=True))],
            )
        return self._binding

    def _note(self, host: str, made: bool) -> None:
        self._tries[host] = {"zone": self._chosen[host], "made": made}
        write_atomically(self._file, json.dumps(self._tries, indent=2, sort_keys=True) + "\n")
