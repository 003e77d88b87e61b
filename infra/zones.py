"""Which zone a host is made in, by what the clouds have answered so far.

A host that was tried goes to the next zone of its pool's list where the try failed; one that was never tried begins
where the last host of its pool was made. Zones that answered in the last run that they have no capacity come last.

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

from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet.host_plan import HostPlan


def tries_file(directory: Path) -> Path:
    """Where the tries of a fleet are kept, beside its ``stack.json``."""
    return directory / "zones.json"


def read_tries(directory: Path) -> dict[str, dict[str, Any]]:
    """Host -> its last try.

    ``zone``, ``made``, and what older files do not have: ``answered``, ``pool``, ``full`` (the answer was that the zone
    has no capacity) and ``run`` (its number).
    """
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
        self._last_run = max((_run(each) for each in self._tries.values()), default=0)
        # As it was before this run: the choice for a host must not hang on how far the engine is with another.
        self._before_this_run = {host: dict(each) for host, each in self._tries.items()}
        self._pools: dict[tuple[str, tuple[str, ...]], tuple[str, frozenset[str]]] = {}
        self._chosen: dict[str, tuple[HostPlan, str]] = {}
        #: (pool, zone) -> the host that was told in this run that there is no capacity.
        self._full: dict[tuple[str, str], str] = {}
        self._binding: pulumi.ResourceHookBinding | None = None

    def choose(self, host: HostPlan) -> str:
        """The zone for a host that is not made yet.

        Args:
            host: one that is rented, in a cloud with zones.
        """
        zones = host.rented.placement.all_zones if host.rented else ()
        last = self._before_this_run.get(host.name, {})
        zone = str(last.get("zone"))
        if zone in zones and last.get("made"):
            return zone
        begin, full = self._of_pool(host.pool, zones)
        first = zones.index(zone) + 1 if zone in zones else zones.index(begin)
        in_order = [zones[(first + number) % len(zones)] for number in range(len(zones))]
        return next((each for each in in_order if each not in full), in_order[0])

    def _of_pool(self, pool: str, zones: tuple[str, ...]) -> tuple[str, frozenset[str]]:
        """Where the last host of a pool was made, and the zones that the last run has found full; looked at once."""
        if (pool, zones) not in self._pools:
            mates = [each for each in self._before_this_run.values() if each.get("pool") == pool]
            here = [each for each in mates if each["zone"] in zones]
            made = max((each for each in here if each["made"]), key=_run, default=None)
            full = frozenset(each["zone"] for each in here if each.get("full") and _run(each) == self._last_run)
            self._pools[pool, zones] = (str(made["zone"]) if made else zones[0], full)
        return self._pools[pool, zones]

    def hooks(self, host: HostPlan, zone: str) -> pulumi.ResourceHookBinding:
        """What writes the try down, for the options of the resource that is the host.

        Args:
            host: the host; the resource has its name.
            zone: where it is tried.
        """
        self._chosen[host.name] = (host, zone)
        if self._binding is None:
            # The same for all hosts: each hook is a message to the engine.
            self._binding = pulumi.ResourceHookBinding(
                before_create=[pulumi.ResourceHook("zone-tried", lambda args: self._before(args.name))],
                after_create=[pulumi.ResourceHook("zone-taken", lambda args: self._note(args.name, made=True))],
                on_error=[pulumi.ErrorHook("zone-refused", self._failed)],
            )
        return self._binding

    def _before(self, name: str) -> None:
        last = self._tries.get(name, {})
        if not last.get("answered", True):
            raise FleetError(
                f"the last run was cut off while {name} was made in {last['zone']}: it may exist, and cost money",
                f"look for it in the cloud, then: python -m infra.repair {pulumi.get_stack()} --adopt {name}=ITS_ID"
                f", or --gone {name} where there is none",
            )
        host, zone = self._chosen[name]
        if told := self._full.get((host.pool, zone)):
            self._note(name, full=True)
            raise FleetError(
                f"{zone} has just answered to {told} that it has no capacity: {name} was not asked for there",
                f"run 'pulumi up' again: {_next(host, zone)}",
            )
        self._note(name, answered=False)

    def _failed(self, args: pulumi.ErrorHookArgs) -> bool:
        """The cloud's answer was no; the engine need not try once more."""
        if args.failed_operation == "create":
            host, zone = self._chosen[args.name]
            words = host.rented.table.no_capacity if host.rented else []
            full = any(word in error for word in words for error in args.errors)
            if full:
                self._full.setdefault((host.pool, zone), args.name)
            self._note(args.name, full=full)
        return False

    def _note(self, name: str, made: bool = False, answered: bool = True, full: bool = False) -> None:
        host, zone = self._chosen[name]
        found = {"zone": zone, "made": made, "answered": answered, "pool": host.pool, "run": self._last_run + 1}
        self._tries[name] = {**found, **({"full": True} if full else {})}
        write_tries(self._directory, self._tries)


def _run(tried: Mapping[str, Any]) -> int:
    return int(tried.get("run", 0))


def _next(host: HostPlan, zone: str) -> str:
    others = [each for each in (host.rented.placement.all_zones if host.rented else ()) if each != zone]
    return (
        f"it tries {others[0]}" if len(others) == 1 else "it tries the next zone" if others else "the pool has no other"
    )
