"""How long the first copy of the weights takes on a rented host, as far as the speeds on its way are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vllm_fleet.catalogue.rental import Rented
from vllm_fleet.fleet import disk_speed, weights_disk
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan

#: What the times leave out, for people.
ASSUMES = "networks are not counted, and a mirror reads each file once for all hosts"


@dataclass(frozen=True)
class Bound:
    """A part of the way that the weights take.

    Attributes:
        what: the part, in words.
        mib_s: its throughput; None where it is not known.
    """

    what: str
    mib_s: float | None


@dataclass(frozen=True)
class FirstCopy:
    """The first copy on the hosts of one pool.

    Attributes:
        pool: the pool.
        model: what it serves.
        weights_gib: the weights.
        disk: where they land, in words.
        bounds: the parts of their way whose speed matters.
    """

    pool: str
    model: str
    weights_gib: float
    disk: str
    bounds: tuple[Bound, ...]

    @property
    def slowest(self) -> Bound | None:
        """The slowest part of those that are known; None where none is."""
        known = [bound for bound in self.bounds if bound.mib_s]
        return min(known, key=lambda bound: bound.mib_s or 0, default=None)

    @property
    def seconds(self) -> float | None:
        """The least time that the copy takes; None where no speed is known."""
        slowest = self.slowest
        return self.weights_gib * 1024 / slowest.mib_s if slowest and slowest.mib_s else None

    @property
    def unknown(self) -> tuple[str, ...]:
        """The parts whose speed is not known."""
        return tuple(bound.what for bound in self.bounds if not bound.mib_s)

    def record(self) -> dict[str, Any]:
        """The copy as the JSON contract spells it."""
        return {
            "pool": self.pool,
            "model": self.model,
            "weights_gib": round(self.weights_gib, 1),
            "disk": self.disk,
            "at_least_seconds": None if self.seconds is None else round(self.seconds),
            "bounds": [
                {"what": bound.what, "mib_s": None if bound.mib_s is None else round(bound.mib_s)}
                for bound in self.bounds
            ],
            "assumes": ASSUMES,
        }


def first_copies(plan: Plan) -> Iterator[FirstCopy]:
    """The first copy of each pool whose hosts are rented.

    Args:
        plan: the fleet.
    """
    mirror = next((host for host in plan.hosts if host.name == plan.spec.mirror.host and host.rented), None)
    for host in {host.pool: host for host in plan.hosts}.values():
        if host.rented and host.deployment:
            disk = weights_disk.find(host.rented)
            bounds = tuple(_bounds(host.rented, disk, mirror))
            yield FirstCopy(host.pool, host.deployment.model, host.deployment.fit.weights_gib, disk.name, bounds)


def _bounds(rented: Rented, disk: weights_disk.WeightsDisk, mirror: HostPlan | None) -> Iterator[Bound]:
    which: dict[weights_disk.DiskKind, disk_speed.Which] = {"volume": "models", "root": "root"}
    # How fast the disks inside a host are, no table says.
    own = disk_speed.throughput_mib_s(rented, which[disk.kind]) if disk.kind in which else None
    yield Bound(disk.name, own)
    if mirror and mirror.rented:
        yield Bound(f"the root disk of {mirror.name}", disk_speed.throughput_mib_s(mirror.rented, "root"))
