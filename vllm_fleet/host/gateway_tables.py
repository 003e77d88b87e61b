"""A plan -> the port at which its gateways share their tables, and who opens it between them."""

from __future__ import annotations

from vllm_fleet.fleet import existing_networks
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.host.haproxy import TABLES_PORT, shares_tables


def peer_ports(plan: Plan) -> tuple[int, ...]:
    """The TCP ports that gateways open to each other and to no other host; none where they share nothing.

    All gateways of a fleet are in one network, because they have one cloud and one placement.

    Args:
        plan: the fleet.
    """
    return (TABLES_PORT,) if shares_tables(plan.gateway, len(_gateways(plan))) else ()


def unopened_ports_note(plan: Plan) -> str | None:
    """What the user opens between gateways; None where the stack does so, or there is nothing to open.

    The lab has no firewall.

    Args:
        plan: the fleet.
    """
    ports = peer_ports(plan)
    if not ports:
        return None
    gateways = _gateways(plan)
    if all(host.static for host in gateways):
        owner = "your own gateways"
    elif any(_has_own_rules(host) for host in gateways):
        owner = "gateways with firewall rules of your account"
    else:
        return None
    return (
        f"the stack makes no rule for {owner}: open TCP {', '.join(map(str, ports))} from each gateway to the others, "
        "or a session that changes the gateway changes its instance"
    )


def _gateways(plan: Plan) -> tuple[HostPlan, ...]:
    return tuple(host for host in plan.hosts if host.kind == "gateway")


def _has_own_rules(host: HostPlan) -> bool:
    existing = existing_networks.of(host)
    return existing is not None and existing.has_own_rules
