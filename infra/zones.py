"""Chooses the zone of each new host from the results of earlier tries.

After a failed try, a host uses the next zone of its pool's list, unless a limit of the account was the reason. A host
without a try starts with the zone of the last host of its pool. Zones that had no capacity in the last run come last.

A try is recorded before the request to the cloud, and again with the result. A host that exists keeps its zone: the
clouds' components ignore a change of zone. A try without a result was interrupted: the host may exist, and may cost
money, so no second one is requested until an operator has checked the cloud.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pulumi

from infra.tries import TriesFile, interrupted, read_tries
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.stack import up_command


class Zones:
    """The zones of all hosts of a fleet."""

    def __init__(self, directory: Path, creating: Collection[str] = (), living: Collection[str] = ()) -> None:
        """The zones of a fleet.

        Args:
            directory: the fleet's folder.
            creating: the hosts whose creation was interrupted, by the state: ``zones.json`` of another checkout, where
                that run was, is not here.
            living: the hosts that exist, by the state.
        """
        self._living = frozenset(living)
        # From before this run: the choice for a host must not depend on the progress of others.
        self._before_this_run = tries = read_tries(directory)
        self._file = TriesFile(directory, tries)
        self._last_run = max((_run(last_try) for last_try in tries.values()), default=0)
        open_ = [host for host, last_try in tries.items() if not last_try.get("answered", True)]
        self._interrupted = {
            host: str(tries.get(host, {}).get("zone", "a zone that this checkout does not know"))
            for host in (*open_, *sorted(set(creating) - set(open_)))
        }
        self._pools: dict[tuple[str, tuple[str, ...]], tuple[str, frozenset[str]]] = {}
        self._chosen: dict[str, tuple[HostPlan, str]] = {}
        #: Host -> why it may not be requested.
        self._forbidden: dict[str, FleetError] = {}
        #: (pool, zone) -> the host that was refused in this run for lack of capacity.
        self._full: dict[tuple[str, str], str] = {}
        self._binding: pulumi.ResourceHookBinding | None = None

    def choose(self, host: HostPlan) -> str:
        """The zone for a host that does not exist yet.

        Args:
            host: a rented host, in a cloud with zones.
        """
        zones = host.rented.placement.all_zones if host.rented else ()
        last = self._before_this_run.get(host.name, {})
        zone = str(last.get("zone"))
        if zone in zones and last.get("made"):
            return zone
        begin, full = self._of_pool(host.pool, zones)
        first = zones.index(begin)
        if zone in zones:
            # A limit of the account says nothing about the zone.
            first = zones.index(zone) + (0 if last.get("limited") else 1)
        in_order = [zones[(first + number) % len(zones)] for number in range(len(zones))]
        return next((candidate for candidate in in_order if candidate not in full), in_order[0])

    def is_made(self, name: str) -> bool:
        """Whether a host exists, by the state, or as far as the last runs of this checkout know."""
        return name in self._living or bool(self._before_this_run.get(name, {}).get("made"))

    def refuse(self, host: HostPlan, why: FleetError) -> None:
        """Lets this run request no new host of that name; one that exists stays."""
        self._forbidden[host.name] = why

    def _of_pool(self, pool: str, zones: tuple[str, ...]) -> tuple[str, frozenset[str]]:
        """The zone of the last host of a pool, and the zones without capacity in the last run; computed once."""
        if (pool, zones) not in self._pools:
            mates = [mate for mate in self._before_this_run.values() if mate.get("pool") == pool]
            here = [mate for mate in mates if mate["zone"] in zones]
            made = max((mate for mate in here if mate["made"]), key=_run, default=None)
            full = frozenset(mate["zone"] for mate in here if mate.get("full") and _run(mate) == self._last_run)
            self._pools[pool, zones] = (str(made["zone"]) if made else zones[0], full)
        return self._pools[pool, zones]

    def hooks(self, host: HostPlan, zone: str) -> pulumi.ResourceHookBinding:
        """The hooks that record the try, for the options of the host's resource.

        Args:
            host: the host; its resource has the same name.
            zone: the zone of the try.
        """
        self._chosen[host.name] = (host, zone)
        if self._binding is None:
            # Shared by all hosts: each hook is a message to the engine.
            self._binding = pulumi.ResourceHookBinding(
                before_create=[pulumi.ResourceHook("zone-tried", lambda args: self._before(args.name))],
                after_create=[pulumi.ResourceHook("zone-taken", lambda args: self._note(args.name, made=True))],
                on_error=[pulumi.ErrorHook("zone-refused", self._failed)],
            )
        return self._binding

    def _before(self, name: str) -> None:
        if name in self._interrupted:
            # Of several hooks that fail at once the engine may show one error alone: each tells the whole.
            places = [f"{host} in {zone}" for host, zone in self._interrupted.items()]
            raise interrupted(pulumi.get_stack(), list(self._interrupted), places)
        if name in self._forbidden:
            raise self._forbidden[name]
        host, zone = self._chosen[name]
        if refused_host := self._full.get((host.pool, zone)):
            self._note(name, full=True)
            raise FleetError(
                f"{zone} had no capacity for {refused_host} in this run: {name} was not requested there",
                f"run '{up_command(pulumi.get_stack())}' again: {_next(host, zone)}",
            )
        self._note(name, answered=False)

    def _failed(self, args: pulumi.ErrorHookArgs) -> bool:
        """Records the refusal; returns False, so that the engine does not retry."""
        if args.failed_operation == "create":
            host, zone = self._chosen[args.name]
            answers = [host.rented.table.answer(error) for error in args.errors] if host.rented else []
            found = next((answer for answer in answers if answer), None)
            full = found is not None and found.means == "no-capacity"
            if full:
                self._full.setdefault((host.pool, zone), args.name)
            elif found:
                pulumi.warn(
                    f"{args.name}: a limit of the account is reached, not the capacity of {zone}: another zone of the "
                    f"region has the same limit. To go on: {found.cure}"
                )
            self._note(args.name, full=full, limited=found is not None and not full)
        return False

    def _note(self, name: str, made: bool = False, answered: bool = True, **why: bool) -> None:
        host, zone = self._chosen[name]
        noted = {"zone": zone, "made": made, "answered": answered, "pool": host.pool, "run": self._last_run + 1}
        self._file.note(name, {**noted, **{key: True for key, holds in why.items() if holds}})


def _run(tried: Mapping[str, Any]) -> int:
    return int(tried.get("run", 0))


def _next(host: HostPlan, zone: str) -> str:
    others = [other for other in (host.rented.placement.all_zones if host.rented else ()) if other != zone]
    return (
        f"the next run tries {others[0]}"
        if len(others) == 1
        else "the next run tries the next zone"
        if others
        else "the pool has no other zone"
    )
