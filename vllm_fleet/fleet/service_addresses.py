"""Where the hosts of a fleet reach each other: the IP address that each listens on, and those it connects from.

IP addresses are judged without a network. DNS names need a resolver; it is asked on the controller, so that no host of
the fleet depends on DNS, and all of them get the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_fleet.base import yaml_document
from vllm_fleet.base.addresses import IpAddress, parse_ip
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.yaml_reader import Location
from vllm_fleet.fleet.host_plan import HostPlan

#: DNS names -> name -> its addresses, or the reason why it has none, in words.
Resolver = Callable[[Iterable[str]], Mapping[str, "tuple[IpAddress, ...] | str"]]
_PRIVATE_ADDRESS = "give the IP address at which the other hosts reach it in 'private_address'"


@dataclass(frozen=True)
class ServiceAddress:
    """The addresses of one host inside the fleet.

    Attributes:
        listen: the address that its services listen on, at which the others reach it.
        connect_from: every address that it may connect from, which firewalls admit.
    """

    listen: str
    connect_from: tuple[str, ...]


@dataclass(frozen=True)
class _Known:
    """A static host with the addresses that are known of it."""

    host: HostPlan
    at: Location
    text: str
    addresses: tuple[IpAddress, ...]

    def family(self, version: int) -> tuple[IpAddress, ...]:
        return tuple(address for address in self.addresses if address.version == version)


def address_errors(hosts: Sequence[HostPlan], document: yaml_document.Document) -> Iterator[FleetError]:
    """What is wrong with the addresses of static hosts, as far as no name must be resolved."""
    known = [
        _Known(host, at, text, (address,)) for host, at, text in _static_hosts(hosts) if (address := parse_ip(text))
    ]
    yield from _loopback(known, hosts, document)
    yield from _same(known, document)
    yield from _families(known, document)


def resolve_addresses(
    hosts: Sequence[HostPlan], document: yaml_document.Document, resolver: Resolver
) -> Mapping[str, ServiceAddress]:
    """Host -> its addresses inside the fleet, for static hosts.

    Where all hosts have IPv4, that is the family; else IPv6 where all have it; else each has what it has.

    Args:
        hosts: all hosts of the plan.
        document: the fleet's file, for errors.
        resolver: resolves DNS names; it is called once, and not at all for a fleet without names.

    Raises:
        FleetError: a name does not resolve, or to nothing that the other hosts can use; it carries all such errors.
    """
    statics = list(_static_hosts(hosts))
    names = {text for _, _, text in statics if parse_ip(text) is None}
    answers = resolver(sorted(names)) if names else {}
    errors: list[FleetError] = []
    known: list[_Known] = []
    for host, at, text in statics:
        literal = parse_ip(text)
        answer: tuple[IpAddress, ...] | str = (literal,) if literal else answers[text]
        if isinstance(answer, str):
            errors.append(_error(document, at, f"{text!r} does not resolve on this machine: {answer}"))
        else:
            usable = tuple(each for each in answer if literal or not (each.is_loopback or each.is_link_local))
            if usable:
                known.append(_Known(host, at, text, usable))
            else:
                found = ", ".join(map(str, answer)) or "no address"
                errors.append(
                    _error(document, at, f"{text!r} resolves to {found} here, where the other hosts cannot reach it")
                )
    version = _common_version(known)
    addresses = {}
    for each in known:
        own = each.family(version or 4) or each.addresses
        if len(own) > 1 and each.host.kind == "serving":
            listed = ", ".join(map(str, own))
            errors.append(_error(document, each.at, f"{each.text!r} has several addresses: {listed}"))
        addresses[each.host.name] = ServiceAddress(str(own[0]), tuple(map(str, each.addresses)))
    if len(known) == len(statics):
        chosen = [
            each if each.host.kind == "gateway" else _Known(each.host, each.at, each.text, (listen,))
            for each in known
            if (listen := parse_ip(addresses[each.host.name].listen))
        ]
        errors += _same(chosen, document)
        errors += _families(chosen, document)
    if errors:
        errors[0].others = errors[1:]
        raise errors[0]
    return addresses


def _static_hosts(hosts: Iterable[HostPlan]) -> Iterator[tuple[HostPlan, Location, str]]:
    """Each static host with the key and the text of the address at which the others reach it."""
    for host in hosts:
        if host.static:
            key = "private_address" if host.static.private_address else "address"
            yield host, (*host.section, "static", host.name, key), host.static.private_address or host.static.address


def _common_version(known: Sequence[_Known]) -> int | None:
    return next((version for version in (4, 6) if all(each.family(version) for each in known)), None)


def _error(document: yaml_document.Document, at: Location, text: str) -> FleetError:
    return document.error(at, text, _PRIVATE_ADDRESS)


def _loopback(
    known: Sequence[_Known], hosts: Sequence[HostPlan], document: yaml_document.Document
) -> Iterator[FleetError]:
    """Loopback addresses, which are right for a host that is a fleet by itself only."""
    for each in known:
        if each.addresses[0].is_loopback and len(hosts) > 1:
            yield _error(document, each.at, f"{each.text} is a loopback address: other hosts cannot reach it")


def _same(known: Sequence[_Known], document: yaml_document.Document) -> Iterator[FleetError]:
    """Two hosts with one address: they listen on the same ports of it."""
    seen: dict[IpAddress, _Known] = {}
    for each in known:
        for address in each.addresses:
            other = seen.setdefault(address, each)
            # The plan has reported two hosts with one address and port for SSH.
            if other is not each and _ssh(other) != _ssh(each):
                text = f"{each.host.name} and {other.host.name} both have the address {address}"
                yield _error(document, each.at, text)
                break


def _ssh(known: _Known) -> tuple[str, int] | None:
    static = known.host.static
    return (static.address, static.port) if static else None


def _families(known: Sequence[_Known], document: yaml_document.Document) -> Iterator[FleetError]:
    """Gateways that cannot reach a serving host, or whose address its firewall does not know."""
    serving = [each for each in known if each.host.kind == "serving"]
    for gateway in (each for each in known if each.host.kind == "gateway"):
        for version in (4, 6):
            lacking = [each for each in serving if each.family(version) and not gateway.family(version)]
            if lacking:
                names = ", ".join(each.host.name for each in lacking[:3]) + (", ..." if len(lacking) > 3 else "")
                yield document.error(
                    gateway.at,
                    f"the gateway has no IPv{version} address, the only kind that is known of {names}: a firewall "
                    "on each host knows the gateway by its address",
                    "give both an address of one family, or a DNS name that has both",
                )
