"""Names that no host may have, because a group of the inventory has it: Ansible takes one for the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.fleet import Fleet

#: Groups of every fleet, which the inventory plugin makes. Others have an underscore, which no name of a host has.
GROUPS = ("fleet", "serving", "gateway", "idle", "skipped", "needs_any", "rollout")
#: Ansible's own groups, and the controller, where tasks are delegated to.
_OF_ANSIBLE = ("all", "ungrouped", "localhost")


def reserved_errors(hosts: Sequence[HostPlan], spec: Fleet, document: yaml_document.Document) -> Iterator[FleetError]:
    """Hosts with such a name.

    Args:
        hosts: those of the plan.
        spec: the fleet.
        document: its file, for errors.
    """
    for host in hosts:
        if host.name not in (*GROUPS, *_OF_ANSIBLE):
            continue
        members = spec.gateway.hosts if host.kind == "gateway" else spec.pools[host.pool].hosts
        names = members if isinstance(members, list) else []
        at = ("static", host.name) if host.static else ("hosts", names.index(host.name))
        what = "Ansible's own" if host.name in _OF_ANSIBLE else "that of a group of the inventory"
        yield document.error(
            (*host.section, *at), f"{host.name!r} is no name for a host: it is {what}", "rename the host"
        )
