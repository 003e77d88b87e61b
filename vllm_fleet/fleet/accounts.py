"""Whether the hosts of a fleet are in the accounts that its ``account`` allows, as far as ``fleet.yml`` tells.

Whose credentials they are, only the cloud knows: the clouds' components ask it before they make anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import GcpPlacement
from vllm_fleet.schema.fleet import Fleet


def account_errors(hosts: Sequence[HostPlan], spec: Fleet, document: yaml_document.Document) -> Iterator[FleetError]:
    """Pools in a project that is not allowed, and accounts of clouds in which the fleet has no host."""
    account = spec.account
    # A pool with an error has no hosts in the plan, and is in its cloud all the same.
    clouds = {pool.cloud for pool in spec.pools.values()} | {spec.gateway.cloud} | {host.cloud for host in hosts}
    for cloud in account.model_fields_set:
        if getattr(account, cloud) is not None and cloud not in clouds:
            yield document.error(("account", cloud), f"the fleet has no host at {cloud}", "remove it")
    seen: set[str] = set()
    for host in hosts:
        placement = host.rented.placement if host.rented else None
        if account.gcp is None or not isinstance(placement, GcpPlacement) or host.pool in seen:
            continue
        seen.add(host.pool)
        if placement.project not in account.gcp:
            yield document.error(
                (*host.section, "placement", "project"),
                f"is {placement.project!r}, and account.gcp allows {', '.join(account.gcp)}",
                "correct one of them",
                ErrorCode.REFUSED,
            )
