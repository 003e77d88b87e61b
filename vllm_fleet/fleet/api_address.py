"""Plans -> the URLs of their APIs, and the virtual addresses that two of them cannot have at once."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

from vllm_fleet.base.addresses import host_port
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.schema.virtual_address import VirtualAddress

_AT = ("gateway", "virtual_address")
#: Fleets whose virtual addresses are in one network of this size are taken to be on one link.
_LINK = {4: 24, 6: 64}


def clashes(plans: Sequence[Plan]) -> Iterator[FleetError]:
    """Fleets that cannot be on one link: with one virtual address, or one router id in one network.

    Args:
        plans: fleets that are known together.
    """
    known: list[tuple[Plan, VirtualAddress]] = []
    for plan in plans:
        shared = plan.gateway.virtual_address
        for other, theirs in known if shared else ():
            if shared is None or shared.ip.version != theirs.ip.version:
                continue
            link = ipaddress.ip_network(f"{theirs.ip}/{_LINK[theirs.ip.version]}", strict=False)
            if shared.ip == theirs.ip:
                text = f"is the virtual address of the fleet {other.fleet!r} too"
                yield plan.document.error((*_AT, "address"), text, "give each fleet its own")
            elif shared.router_id == theirs.router_id and shared.ip in link:
                text = f"is {shared.router_id}, and so is that of the fleet {other.fleet!r} in the same network {link}"
                at = (*_AT, "router_id") if "router_id" in shared.model_fields_set else _AT
                yield plan.document.error(
                    at, f"router_id {text}" if at == _AT else text, "give 'router_id' another number"
                )
        if shared:
            known.append((plan, shared))


def api_urls(plan: Plan) -> tuple[str, ...]:
    """The URLs that clients use: that of the virtual address, else those of the gateways that exist already.

    Args:
        plan: the fleet. The addresses of rented gateways are in its stack. Of a gateway with two addresses, only its
            network knows which one clients reach.
    """
    gateway = plan.gateway
    scheme = "https" if gateway.tls else "http"
    statics = [host.static for host in plan.hosts if host.kind == "gateway" and host.static]
    own = [static.address for static in statics if static.private_address is None]
    addresses = [str(gateway.virtual_address.ip)] if gateway.virtual_address else own
    return tuple(f"{scheme}://{host_port(address, gateway.port)}" for address in addresses)
