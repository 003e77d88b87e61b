"""Gateways without TLS: API keys are readable on the way, so on the internet the fleet must say that it wants that."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence

from vllm_fleet.base import yaml_document
from vllm_fleet.base.addresses import IpAddress, is_private, is_shared, parse_ip
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet import open_networks
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.fleet import Fleet

_FIX = "give gateway.tls, or 'gateway.plain: true' where TLS ends before the gateway"


def plain_api_errors(
    hosts: Iterable[HostPlan],
    spec: Fleet,
    document: yaml_document.Document,
    resolved: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[FleetError]:
    """Gateways that take API keys from the internet without TLS.

    Args:
        hosts: the hosts of the plan.
        spec: the fleet.
        document: the fleet's file, for errors.
        resolved: gateway -> its addresses, where DNS names have been resolved; None judges IP addresses alone.
    """
    if spec.gateway.tls:
        return
    if spec.gateway.plain:
        # A load balancer that ends TLS has a network of its own: api_from names that network, and not the internet.
        if any(host.rented and host.rented.placement.public_address for host in hosts if host.kind == "gateway"):
            for index, whole in open_networks.too_wide(spec.access.api_from):
                yield document.error(
                    ("access", "api_from", index),
                    f"opens gateways that take API keys without TLS to the internet ({whole})",
                    "give gateway.tls, or the network of what ends TLS before the gateways",
                )
        return
    shared = spec.gateway.virtual_address
    if shared and not (is_private(shared.ip) or is_shared(shared.ip)):
        text = f"is {shared.ip}, a public address at which API keys would be taken without TLS"
        yield document.error(("gateway", "virtual_address", "address"), text, _FIX)
    for host in hosts:
        if host.kind != "gateway":
            continue
        if host.static:
            texts = [host.static.address, host.static.private_address, *(resolved or {}).get(host.name, ())]
            public = [ip for text in texts if text and (ip := parse_ip(text)) and not (is_private(ip) or is_shared(ip))]
            if public:
                yield document.error(
                    ("gateway", "static", host.name),
                    f"takes API keys without TLS at the public address {public[0]}",
                    _FIX,
                )
        elif host.rented and host.rented.placement.public_address:
            outside = [text for text in spec.access.api_from if not _inside(text)]
            if outside:
                yield document.error(
                    ("gateway",),
                    f"takes API keys without TLS from {outside[0]} (access.api_from) over the internet",
                    _FIX,
                )
                return


def plain_api_warning(hosts: Iterable[HostPlan], spec: Fleet) -> str | None:
    """A warning for gateways without TLS whose network is private; None where there is nothing to warn of."""
    if (
        spec.gateway.tls
        or spec.gateway.plain
        or not any(
            # The network of the lab is inside this machine.
            host.kind == "gateway" and host.cloud != "lab"
            for host in hosts
        )
    ):
        return None
    return f"the gateways take API keys without TLS: everyone on the way in your network can read them ({_FIX})"


def _inside(text: str) -> bool:
    network = ipaddress.ip_network(text)
    ends: tuple[IpAddress, IpAddress] = (network.network_address, network.broadcast_address)
    return all(is_private(end) or is_shared(end) for end in ends)
