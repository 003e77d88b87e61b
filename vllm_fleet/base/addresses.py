"""Addresses of hosts, as people write them -> one form of each: an IP address, or a DNS name in lower case."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
#: RFC 1123, 2.1: letters, digits and dashes, no dash at an end, 63 characters at most.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
#: A last label that is a number makes an IPv4 address of the whole name; programs read such forms in different ways.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LONGEST_NAME = 253
#: RFC 1918 and RFC 4193: no router of the internet forwards to them.
_PRIVATE = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
#: RFC 6598: addresses behind a provider's NAT. They are not on the internet, and others than their owner use them.
_SHARED = ipaddress.IPv4Network("100.64.0.0/10")


def parse_host_address(value: str) -> str:
    """The address of a host in the one form that the project uses.

    Args:
        value: an IPv4 or IPv6 address, the latter with or without brackets, or a DNS name.

    Raises:
        ValueError: it is another text; the message says what to write instead.
    """
    if any(char.isspace() for char in value) or not value.isprintable():
        raise ValueError(f"{value!r} contains blanks or control characters: remove them")
    if not value:
        raise ValueError("is empty: give an IP address or a DNS name")
    user, at, host = value.rpartition("@")
    if ":" in user:
        raise ValueError("contains an account with a password: write the address of the host alone")
    if at:
        raise ValueError(f"{value!r} contains an account: write {host!r}, and 'user: {user}' beside it")
    if "://" in value or "/" in value:
        raise ValueError(f"{value!r} is a URL or a network: give the address of the host alone")
    if port := re.fullmatch(r"(\[[^\]]+\]|[^:]+):([0-9]+)", value):
        raise ValueError(f"{value!r} contains a port: write {port[1]!r}, and 'port: {port[2]}' beside it")
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    if ":" in bare:
        return str(_parse_ipv6(value, bare))
    if bare != value:
        raise ValueError(f"{value!r} is not an IPv6 address: only those are written in brackets")
    return _parse_name(value) if _is_name(value) else str(_parse_ipv4(value))


def _parse_ipv6(value: str, bare: str) -> IpAddress:
    if "%" in bare:
        raise ValueError(f"{value!r} has a zone, which only one machine knows: give an address without '%'")
    try:
        address = ipaddress.IPv6Address(bare)
    except ValueError:
        raise ValueError(f"{value!r} is not an IPv6 address: write it such as fd00::5") from None
    if address.ipv4_mapped:
        return _usable(value, address.ipv4_mapped)
    return _usable(value, address)


def _parse_ipv4(value: str) -> IpAddress:
    try:
        return _usable(value, ipaddress.IPv4Address(value))
    except ipaddress.AddressValueError:
        raise ValueError(
            f"{value!r} is not an IPv4 address: write four numbers from 0 to 255 without leading zeros"
        ) from None


def _usable(value: str, address: IpAddress) -> IpAddress:
    if address.is_unspecified or address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        raise ValueError(f"{value!r} is the address of no single host: give the host's own address")
    if address.is_link_local:
        why = "needs a zone" if address.version == 6 else "no router forwards to"
        raise ValueError(f"{value!r} is a link-local address, which {why}: give another address of the host")
    return address


def _is_name(value: str) -> bool:
    return not _NUMBER.fullmatch(value.lower().removesuffix(".").rpartition(".")[2])


def _parse_name(value: str) -> str:
    name = value.lower().removesuffix(".")
    if not name.isascii():
        raise ValueError(f"{value!r} is not a DNS name: write its ASCII form, which begins with 'xn--'")
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"a DNS name has at most {_LONGEST_NAME} characters, this one has {len(name)}")
    for label in name.split("."):
        if not _LABEL.fullmatch(label):
            raise ValueError(
                f"{value!r} is neither an IP address nor a DNS name: a name has letters, digits and dashes in parts of "
                "1 to 63 characters with dots between them, and no '_'"
            )
    return name


def parse_ip(text: str) -> IpAddress | None:
    """The IP address that a checked address is; None for a DNS name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def bracketed(address: str) -> str:
    """An address as URLs and ``host:port`` have it: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


def host_port(address: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"{bracketed(address)}:{port}"


def is_private(address: IpAddress) -> bool:
    """Whether an address is loopback, link-local, or in a range that is not routed on the internet (RFC 1918, 4193)."""
    return address.is_loopback or address.is_link_local or any(address in network for network in _PRIVATE)


def is_shared(address: IpAddress) -> bool:
    """Whether an address is in the range of providers' NAT (RFC 6598)."""
    return address in _SHARED


def parse_host_port(value: str) -> str:
    """``host:port`` with the host in its one form.

    Raises:
        ValueError: the host or the port is wrong, or missing.
    """
    if "@" in value:
        raise ValueError("contains an account: write only host and port, such as 10.0.0.5:5000")
    match = re.fullmatch(r"(?P<host>\[[^\]]+\]|[^:]+):(?P<port>[0-9]{1,5})", value)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError(f"{value!r} is not a host with a port: write it such as 10.0.0.5:5000 or [fd00::5]:5000")
    return host_port(parse_host_address(match["host"]), int(match["port"]))


def parse_http_url(value: str) -> str:
    """The URL of a server, without a path: ``http://host``, ``https://host:port``.

    Raises:
        ValueError: it is another text, or its host is wrong.
    """
    if "@" in value or "?" in value:
        raise ValueError(
            "contains an account or a query, which may be a secret: write the URL of the server alone, such as "
            "http://10.0.0.5:8070"
        )
    match = re.fullmatch(r"(https?)://([^/?#]+)", value)
    if match is None:
        raise ValueError(f"{value!r} is not the URL of a server: write it such as http://10.0.0.5:8070, without a path")
    scheme, place = match.groups()
    has_port = re.search(r"(^|[^:\]]|\]):[0-9]+$", place) and (place.startswith("[") or place.count(":") == 1)
    return f"{scheme}://{parse_host_port(place) if has_port else bracketed(parse_host_address(place))}"


HostAddress = Annotated[str, AfterValidator(parse_host_address)]
