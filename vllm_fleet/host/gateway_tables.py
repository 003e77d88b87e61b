"""A plan -> the ports at which its gateways reach each other, and what the user opens between them."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_fleet.fleet import existing_networks
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.host.haproxy import TABLES_PORT, shares_tables
from vllm_fleet.schema.acme import CHALLENGE_PORT


def peer_ports(plan: Plan) -> tuple[int, ...]:
    """The TCP ports that gateways open to each other: of their tables, and of a CA's challenges, which they pass on.

    All gateways of a fleet are in one network, because they have one cloud and one placement.

    Args:
        plan: the fleet.
    """
    return tuple(_peer_services(plan))


def _peer_services(plan: Plan) -> Mapping[int, str]:
    """Port -> what gateways tell each other there."""
    count, services = len(_gateways(plan)), {}
    if count > 1 and plan.gateway.tls and plan.gateway.tls.acme:
        services[CHALLENGE_PORT] = "challenges of the CA"
    if shares_tables(plan.gateway, count):
        services[TABLES_PORT] = "sessions and responses"
    return services


def unopened_ports_note(plan: Plan) -> str | None:
    """What the user opens between gateways; None where the stack does so, or there is nothing to open.

    The lab has no firewall.

    Args:
        plan: the fleet.
    """
    services = _peer_services(plan)
    if not services:
        return None
    gateways = _gateways(plan)
    if all(host.static for host in gateways):
        owner = "your own gateways"
    elif any(_has_own_rules(host) for host in gateways):
        owner = "gateways with firewall rules of your account"
    else:
        return None
    listed = " and ".join(f"{port} ({service})" for port, service in services.items())
    return f"the stack makes no rule for {owner}: open TCP {listed} from each gateway to the others"


def _gateways(plan: Plan) -> tuple[HostPlan, ...]:
    return tuple(host for host in plan.hosts if host.kind == "gateway")


def _has_own_rules(host: HostPlan) -> bool:
    existing = existing_networks.of(host)
    return existing is not None and existing.has_own_rules
