"""The private networks of a fleet: one a region, project or compartment, each with a range of addresses.

How networks reach each other (VPN, peering, transit) is their owner's business; ``access.joined_networks`` says that
they do. Then every network lets the addresses of the gateways in, and no two ranges may overlap.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.field_types import PRIVATE
from vllm_fleet.fleet import existing_networks
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import Placement
from vllm_fleet.schema.fleet import Access

OWN = "your own network"
#: Cloud -> the equal parts that a network is cut into there: AWS has two a zone (of up to 16), with and without a
#: way in from the internet, Oracle has those two.
PARTS: Mapping[str, int] = {"aws": 32, "gcp": 1, "azure": 1, "oci": 2, "digitalocean": 1}
#: Addresses of a part that no host gets; the most of any cloud: AWS and Azure keep five.
_KEPT = 5
_FIX = "give its placement another 'network'"


def name_of(host: HostPlan) -> str:
    """The network that a host is in, as an error names it: hosts with one name share one network."""
    if host.rented is None:
        return OWN
    return " ".join((host.cloud, *host.rented.placement.place))


def members(hosts: Iterable[HostPlan]) -> Mapping[str, tuple[HostPlan, ...]]:
    """The name of each network -> its hosts."""
    hosts_by_network: dict[str, list[HostPlan]] = {}
    for host in hosts:
        hosts_by_network.setdefault(name_of(host), []).append(host)
    return {name: tuple(members) for name, members in hosts_by_network.items()}


def block(hosts: Iterable[HostPlan]) -> IPv4Network | None:
    """The range of a network: what a pool in it says, else the usual one.

    Args:
        hosts: all that are rented in it.

    Returns:
        None where the cloud chooses one that is free in the account (DigitalOcean), and where a network that exists is
        given without its range.
    """
    placements = [host.rented.placement for host in hosts if host.rented]
    existing = [placement.existing for placement in placements if placement.existing]
    if existing:
        said = next((network.range for network in existing if network.range), None)
        return IPv4Network(said) if said else None
    stated = [placement for placement in placements if _says(placement)]
    chosen = (stated or placements)[0].network
    return IPv4Network(chosen) if chosen else None


def part(network: IPv4Network, parts: int, index: int) -> IPv4Network:
    """One of the equal parts of a network.

    Args:
        network: the network.
        parts: how many there are, a power of two.
        index: which one, from 0.
    """
    more = parts.bit_length() - 1
    size = 1 << (network.max_prefixlen - network.prefixlen - more)
    return IPv4Network((int(network.network_address) + index * size, network.prefixlen + more))


def network_errors(hosts: Sequence[HostPlan], access: Access, document: yaml_document.Document) -> Iterator[FleetError]:
    """What is wrong with the ranges of a plan's networks."""
    rented = members(host for host in hosts if host.rented)
    for name, mine in rented.items():
        yield from _disagreeing(name, mine, document)
        yield from existing_networks.disagreeing(name, mine, document)
        yield from _too_small(name, mine, document)
    if access.joined_networks:
        yield from _unclear(rented, document)
        yield from _overlapping(rented, document)
        yield from _static(hosts, rented, document)


def _says(placement: Placement) -> bool:
    return "network" in placement.model_fields_set


def _at(host: HostPlan) -> tuple[str, ...]:
    return ("gateway", "placement") if host.kind == "gateway" else ("pools", host.pool, "placement")


def _disagreeing(name: str, hosts: tuple[HostPlan, ...], document: yaml_document.Document) -> Iterator[FleetError]:
    stated: dict[str, HostPlan] = {}
    for host in hosts:
        if host.rented and _says(host.rented.placement):
            stated.setdefault(str(host.rented.placement.network), host)
    if len(stated) > 1:
        (first, first_host), (second, second_host), *_ = stated.items()
        yield document.error(
            (*_at(second_host), "network"),
            f"is {second}, and {first_host.pool} has {first} for the same network, {name}",
            "give it once for a region",
        )


def _too_small(name: str, hosts: tuple[HostPlan, ...], document: yaml_document.Document) -> Iterator[FleetError]:
    network = block(hosts)
    if network is None or existing_networks.of(hosts[0]):
        return
    parts = PARTS[hosts[0].cloud]
    room = network.num_addresses // parts - _KEPT
    # All of the hosts may be created in one zone.
    if len(hosts) > room:
        cut = f", {parts} parts of it with room for {room} each," if parts > 1 else f" with room for {room}"
        yield document.error(
            (*_at(hosts[0]), "network"), f"{network}{cut} is too small for {len(hosts)} hosts in {name}", _FIX
        )


def _unclear(rented: Mapping[str, tuple[HostPlan, ...]], document: yaml_document.Document) -> Iterator[FleetError]:
    """Networks that cannot be routed to, because their range is unknown before they exist."""
    for name, hosts in rented.items():
        if block(hosts) is not None:
            continue
        if existing_networks.of(hosts[0]):
            at, key, hint = (*_at(hosts[0]), "existing"), "range", "give the range of the whole network as it is"
        else:
            at, key, hint = (
                _at(hosts[0]),
                "network",
                "give a private range that no other network has, such as 10.61.0.0/16",
            )
        yield document.error(at, f"gives no {key!r}, and {name} is joined with others", hint)


def _overlapping(rented: Mapping[str, tuple[HostPlan, ...]], document: yaml_document.Document) -> Iterator[FleetError]:
    seen: dict[str, IPv4Network] = {}
    for name, hosts in rented.items():
        mine = block(hosts)
        if mine is None:
            continue
        key = ("existing", "range") if existing_networks.of(hosts[0]) else ("network",)
        for other, taken in seen.items():
            if mine.overlaps(taken):
                yield document.error(
                    (*_at(hosts[0]), *key),
                    f"{mine} of {name} overlaps with {taken} of {other}, and access.joined_networks joins them",
                    _FIX,
                )
        seen[name] = mine


def _static(
    hosts: Sequence[HostPlan], rented: Mapping[str, tuple[HostPlan, ...]], document: yaml_document.Document
) -> Iterator[FleetError]:
    """Static hosts in a range of a cloud, and gateways that no firewall can name."""
    for host in hosts:
        if host.static is None or not rented:
            continue
        at = (*_at(host)[:-1], "static", host.name, "address")
        address_text = host.static.address
        address = _address(address_text)
        if host.kind == "gateway" and not (address and any(address in private for private in PRIVATE)):
            yield document.error(
                at,
                f"{address_text!r} is not a private IPv4 address: joined networks admit gateways by such an address",
                "give the gateway's address in those networks",
            )
        for name, mine in rented.items():
            network = block(mine)
            if address and network and address in network:
                yield document.error(at, f"{address} is in {network}, the range of {name}", f"{_FIX} there")


def _address(text: str) -> IPv4Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return address if isinstance(address, IPv4Address) else None
