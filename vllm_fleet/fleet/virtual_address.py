"""The address that gateways share: what is wrong with it in one fleet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlsplit

from vllm_fleet.base import yaml_document
from vllm_fleet.base.addresses import IpAddress, parse_ip
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.fleet import Fleet
from vllm_fleet.schema.virtual_address import VirtualAddress

_AT = ("gateway", "virtual_address")


def virtual_address_errors(
    hosts: Sequence[HostPlan],
    spec: Fleet,
    document: yaml_document.Document,
    resolved: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[FleetError]:
    """What is wrong with the address that the gateways share.

    Args:
        hosts: the hosts of the plan.
        spec: the fleet.
        document: the fleet's file, for errors.
        resolved: host -> its IP addresses, where DNS names have been resolved; None judges IP addresses alone.
    """
    shared = spec.gateway.virtual_address
    if shared is None:
        return
    gateways = [host for host in hosts if host.kind == "gateway"]
    if rented := [host for host in gateways if host.static is None]:
        yield document.error(
            _AT,
            f"is for gateways of your own, and {rented[0].name} is one of {rented[0].cloud!r}: the network of a cloud "
            "gives an address to no other host by VRRP",
            "put the cloud's load balancer for TCP before the gateways, with /healthz as its health check",
        )
        return
    if len(gateways) < 2:
        yield document.error(
            _AT,
            f"is for two gateways or more, and the fleet has {len(gateways)}",
            "list another one under gateway.static",
        )
    names = {host.name for host in gateways}
    for name in shared.interfaces:
        if name not in names:
            yield document.error(
                (*_AT, "interfaces", name), "is no gateway of the fleet", f"the gateways are {', '.join(sorted(names))}"
            )
    for name in ("", *shared.interfaces):
        if shared.interface_of(name) == "lo":
            at = (*_AT, "interfaces", name) if name else (*_AT, "interface")
            yield document.error(at, "is the loopback interface", "give the one that clients reach")
    yield from _taken(hosts, spec, document, resolved)
    yield from _families(gateways, shared, document, resolved)
    yield from _sources(hosts, shared, document, resolved)


def _known(host: HostPlan, resolved: Mapping[str, Sequence[str]] | None) -> tuple[IpAddress, ...]:
    """The IP addresses at which other hosts of the fleet reach a static host, as far as they are known."""
    if host.static is None:
        return ()
    texts = (resolved or {}).get(host.name, (host.static.private_address or host.static.address,))
    return tuple(address for text in texts if (address := parse_ip(text)))


def _taken(
    hosts: Sequence[HostPlan],
    spec: Fleet,
    document: yaml_document.Document,
    resolved: Mapping[str, Sequence[str]] | None,
) -> Iterator[FleetError]:
    """The owner of the address, which can be no host and no other service."""
    shared = spec.gateway.virtual_address
    owners: list[tuple[str, str | None]] = []
    for host in hosts:
        texts = (host.static.address, host.static.private_address) if host.static else ()
        owners += [(host.name, text) for text in (*texts, *map(str, _known(host, resolved)))]
    owners += [("access.bastion", spec.access.bastion.address)] if spec.access.bastion else []
    owners += [(f"workers.{name}", worker.address) for name, worker in spec.workers.items()]
    urls = [("mirror.url", spec.mirror.url)]
    urls += [("proxy.http", spec.proxy.http), ("proxy.https", spec.proxy.https)] if spec.proxy else []
    owners += [(key, urlsplit(url).hostname) for key, url in urls if url]
    for owner, text in owners:
        if shared and text and parse_ip(text) == shared.ip:
            yield document.error(
                (*_AT, "address"), f"is the address of {owner}", "give an address that nothing else has"
            )
            return


def _families(
    gateways: Sequence[HostPlan],
    shared: VirtualAddress,
    document: yaml_document.Document,
    resolved: Mapping[str, Sequence[str]] | None,
) -> Iterator[FleetError]:
    """Gateways without an address of the same family, from which they could speak VRRP."""
    for host in gateways:
        known = _known(host, resolved)
        if known and not any(address.version == shared.ip.version for address in known):
            yield document.error(
                (*_AT, "address"),
                f"is an IPv{shared.ip.version} address, and {host.name} has none of that family",
                "give addresses of one family, in 'private_address' where the controller uses another one",
            )
            return


def _sources(
    hosts: Sequence[HostPlan],
    shared: VirtualAddress,
    document: yaml_document.Document,
    resolved: Mapping[str, Sequence[str]] | None,
) -> Iterator[FleetError]:
    """A serving host in the network that the address brings: a gateway would connect to it from the shared address."""
    if shared.network.num_addresses == 1:
        return
    inside = {host.name: any(each in shared.network for each in _known(host, resolved)) for host in hosts}
    outside = [host.name for host in hosts if host.kind == "gateway" and not inside[host.name]]
    served = [host.name for host in hosts if host.kind == "serving" and inside[host.name]]
    if outside and served and _known(next(host for host in hosts if host.name == outside[0]), resolved):
        yield document.error(
            (*_AT, "address"),
            f"brings the network {shared.network}, in which {served[0]} is and {outside[0]} is not: that gateway would "
            "connect from the shared address, which the firewalls of hosts do not know",
            f"write {shared.ip} without a prefix length, or give the gateway an address of that network",
        )
