"""The regions of a fleet with workers: which hosts each worker works on, and what ``workers`` cannot say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.fleet import Fleet, RegionWorker


@dataclass(frozen=True)
class RegionPlan:
    """One region.

    Attributes:
        name: its name.
        worker: the machine that works on its hosts.
        serving: its serving hosts.
        others: the gateways. They belong to the first region, which sets them up before any host is rolled out.
    """

    name: str
    worker: RegionWorker
    serving: tuple[str, ...]
    others: tuple[str, ...]


def list_regions(hosts: Sequence[HostPlan], workers: Mapping[str, RegionWorker]) -> list[RegionPlan]:
    """The regions of a fleet in their order; empty if it has no workers.

    Args:
        hosts: its hosts.
        workers: region -> its worker.
    """
    gateways = tuple(host.name for host in hosts if host.kind == "gateway")
    return [
        RegionPlan(
            name,
            worker,
            tuple(host.name for host in hosts if host.kind == "serving" and host.pool in worker.pools),
            () if number else gateways,
        )
        for number, (name, worker) in enumerate(workers.items())
    ]


def worker_errors(hosts: Sequence[HostPlan], spec: Fleet, document: yaml_document.Document) -> Iterator[FleetError]:
    """Pools that are in no region or in two, and a mirror that the first region needs and does not have."""
    names = {host.name for host in hosts}
    region_of: dict[str, str] = {}
    for region, worker in spec.workers.items():
        if f"worker-{region}" in names:
            yield document.error(
                ("workers", region), f"worker-{region} is the name of a host too", "give the region another name"
            )
        for index, pool in enumerate(worker.pools):
            at = ("workers", region, "pools", index)
            if pool not in spec.pools:
                yield document.error(at, f"there is no pool {pool!r}", f"the fleet has {', '.join(spec.pools)}")
            elif pool in region_of:
                yield document.error(at, f"the pool {pool!r} is in {region_of[pool]} too", "remove one of them")
            region_of.setdefault(pool, region)
    first = next(iter(spec.workers), "")
    for pool in spec.pools if spec.workers else ():
        if pool not in region_of:
            yield document.error(("workers",), f"the pool {pool!r} is in no region", "add it to the pools of a worker")
        elif region_of[pool] != first and spec.mirror.host in {host.name for host in hosts if host.pool == pool}:
            yield document.error(
                ("mirror", "host"),
                f"is in {region_of[pool]}, and the hosts of {first} fetch from it before that region begins",
                f"take a gateway, or a host of {first}",
            )
