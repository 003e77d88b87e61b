"""The addresses that vLLM exchanges packets with -> nftables rules, and the filter of its units."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

#: The account of every vLLM process, in the wheel form and in a container: both use the network of the host.
ACCOUNT = "vllm"


@dataclass(frozen=True)
class Peers:
    """What a serving host exchanges packets with.

    Attributes:
        own: the addresses of the host that the fleet knows.
        gateways: the IP addresses that gateways connect from; only they reach vLLM.
        engine_to: further networks that vLLM may connect to.
    """

    own: tuple[str, ...]
    gateways: tuple[str, ...]
    engine_to: tuple[str, ...] = ()


def firewall_rules(ports: Sequence[int], peers: Peers) -> str:
    """Nftables rules: only the gateways and the host itself reach vLLM, and vLLM reaches only them.

    The API key of vLLM does not protect all of its routes. Workers listen on further ports, which differ at each start;
    the rules for packets that the account sends hold for them too: no connection is made without an answer. They hold
    for processes in a container, which the filter of its unit does not see.

    Args:
        ports: the ports of vLLM and of its readiness.
        peers: the addresses.
    """
    numbers = ", ".join(str(port) for port in sorted(ports))
    accepted = "".join(
        f"    tcp dport {{ {numbers} }} {family} saddr {{ {members} }} accept\n"
        for family, members in _by_family(peers.gateways)
    )
    sent = "".join(
        f"    {family} daddr {{ {members} }} accept\n"
        for family, members in _by_family((*peers.gateways, *peers.engine_to))
    )
    return (
        "# Made by vllm-fleet; another run replaces what is changed here.\n"
        "table inet vllm_fleet {}\n"
        "delete table inet vllm_fleet\n"
        "table inet vllm_fleet {\n"
        "  chain input {\n"
        "    type filter hook input priority filter; policy accept;\n"
        '    iifname "lo" accept\n'
        f"{accepted}"
        f"    tcp dport {{ {numbers} }} drop\n"
        "  }\n"
        "  chain output {\n"
        "    type filter hook output priority filter; policy accept;\n"
        # All addresses of the host: NCCL and gloo choose one of them.
        '    oifname "lo" accept\n'
        f'    meta skuid != "{ACCOUNT}" accept\n'
        f"{sent}"
        # An error at once, where a drop is a timeout.
        f'    meta skuid "{ACCOUNT}" meta l4proto tcp reject with tcp reset\n'
        f'    meta skuid "{ACCOUNT}" reject with icmpx type admin-prohibited\n'
        "  }\n"
        "}\n"
    )


def unit_filter(peers: Peers) -> str:
    """The drop-in of vLLM's units with the addresses of the fleet; the units themselves allow private networks.

    They are the second line, for a moment without the nftables rules.
    """
    networks = sorted({*peers.own, *peers.gateways, *peers.engine_to}, key=_order)
    lines = "".join(f"IPAddressAllow={network}\n" for network in networks)
    return (
        "# Made by vllm-fleet; another run replaces what is changed here. The unit allows private networks; these\n"
        f"# addresses of the fleet may be public.\n[Service]\n{lines}"
    )


def _order(network: str) -> tuple[int, int, int]:
    parsed = ipaddress.ip_network(network)
    return parsed.version, int(parsed.network_address), parsed.prefixlen


def _by_family(networks: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The nftables family and the members of a set, for each family that has some.

    nft refuses a set in which one member is a part of another one.
    """
    for version, family in ((4, "ip"), (6, "ip6")):
        parsed = {network for each in networks if (network := ipaddress.ip_network(each)).version == version}
        parts = {
            each
            for each in parsed
            if any(each != other and each.subnet_of(other) for other in parsed)  # type: ignore[arg-type] # one version
        }
        members = sorted(str(each).removesuffix(f"/{each.max_prefixlen}") for each in parsed - parts)
        if members:
            yield family, ", ".join(members)
