"""The batches of a run, from what it has found on the hosts."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet import region_workers
from vllm_fleet.fleet.batches import Member, Step, plan_batches
from vllm_fleet.inventory import Site, SiteHost
from vllm_fleet.operate import drift

#: The roles that change what an instance runs with, or restart it.
ROLES = frozenset({"vllm_service", "vllm_firewall", "nvidia_driver", "amd_driver"})


def plan_rollout(site: Site, *, probing: bool = True, region: str = "") -> tuple[Step, ...]:
    """The batches of hosts that change, one after the other.

    Args:
        site: the fleet.
        probing: whether the run asks its hosts what differs; without it every host is taken to differ.
        region: the region whose hosts count, of a fleet with workers; empty: all hosts.

    Returns:
        The batches; none before this run has probed.

    Raises:
        FleetError: the fleet has no such region.
    """
    needs = drift.roles_to_run(site.plan.fleet) if probing else {}
    idle = drift.find_idle_hosts(site) if probing else frozenset()

    def changes(host: SiteHost) -> bool | None:
        if not probing:
            return True
        roles = needs.get(host.plan.name)
        return None if roles is None else bool(roles & ROLES)

    counted = _names_of(site, region)
    members = [_member(host, changes(host), idle) for host in _serving(site) if host.plan.name in counted]
    return plan_batches(members, site.plan.spec.rollout)


def _names_of(site: Site, region: str) -> Collection[str]:
    if not region:
        return [host.plan.name for host in site.hosts]
    every = {each.name: each for each in region_workers.list_regions(site.plan.hosts, site.plan.spec.workers)}
    if region not in every:
        known = ", ".join(every) or "none"
        raise FleetError(f"there is no region {region!r}", f"the fleet has {known}", key="fleet_region")
    return every[region].serving


def members_to_go_back(site: Site, chosen: Collection[str]) -> list[Member]:
    """Every serving host of a fleet, of which the chosen ones change.

    Args:
        site: the fleet.
        chosen: names of hosts.
    """
    return [_member(host, host.plan.name in chosen, frozenset()) for host in _serving(site)]


def _serving(site: Site) -> list[SiteHost]:
    return [host for host in site.hosts if host.plan.deployment]


def _member(host: SiteHost, changes: bool | None, idle: frozenset[str]) -> Member:
    variables: Mapping[str, object] = host.variables
    model = host.plan.deployment.model if host.plan.deployment else ""
    return Member(host.plan.name, str(variables["fleet_rollout_line"]), model, changes, host.plan.name in idle)
