"""One host of the To-Be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vllm_fleet.catalogue.rental import Rented
from vllm_fleet.resolve.deployment import Deployment
from vllm_fleet.schema.fleet import StaticHost

Kind = Literal["serving", "gateway"]
#: Port of instance 0; instance n listens on the n-th port after it, its readiness 100 above.
FIRST_PORT = 8000
READINESS_OFFSET = 100
#: What a gateway listens on for itself: the tables of the gateways, its own tables, and health.
GATEWAY_PORTS = (10240, 10242)
GATEWAY_POOL = "gateway"


@dataclass(frozen=True)
class HostPlan:
    """One host of the To-Be.

    Attributes:
        name: unique in the fleet.
        kind: whether it serves or is a gateway.
        pool: its pool; :data:`GATEWAY_POOL` for gateways.
        cloud: where it is.
        placement: as ``fleet.yml`` has it.
        host_class: its class; None for gateways.
        ordinal: its number in the pool, from 0.
        user: who logs in.
        static: address and SSH host key of a host that exists already; None for all others.
        rented: how a cloud rents it; None for static hosts and those of the lab.
        deployment: what it serves; None for gateways.
        names: the names under which clients reach its model; empty for gateways.
        restarted: the day that ``rollout.restarted`` names, or an empty text: a new one restarts its instances.
    """

    name: str
    kind: Kind
    pool: str
    cloud: str
    placement: Mapping[str, Any]
    host_class: str | None
    ordinal: int
    user: str
    static: StaticHost | None = None
    rented: Rented | None = None
    deployment: Deployment | None = None
    names: tuple[str, ...] = ()
    restarted: str = ""

    @property
    def seats(self) -> int:
        """How many requests one of its instances works on at the same time; 0: unknown."""
        args = self.deployment.args if self.deployment else {}
        return int(args.get("max-num-seqs") or 0) * int(args.get("data-parallel-size") or 1)

    @property
    def section(self) -> tuple[str, ...]:
        """The key path in ``fleet.yml`` of what it belongs to: its pool, or the gateways."""
        return ("gateway",) if self.kind == "gateway" else ("pools", self.pool)

    @property
    def may_vanish(self) -> bool:
        """Whether its cloud may end it at any time, or after a time: spot and flex-start."""
        return self.rented is not None and self.rented.placement.capacity.kind in ("spot", "flex-start")

    @property
    def instances(self) -> tuple[tuple[str, int], ...]:
        """Name and port of each vLLM process."""
        count = self.deployment.instances if self.deployment else 0
        return tuple((str(number), FIRST_PORT + number) for number in range(count))
