"""The strict record of ``gateway.virtual_address`` in a fleet.yml: one address that several gateways share."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field

from vllm_fleet.base.addresses import IpAddress, parse_host_address, parse_ip
from vllm_fleet.base.field_types import WHOLE, Name
from vllm_fleet.base.text_form import Form
from vllm_fleet.schema.recipe import Strict

#: The longest name of an interface in Linux has 15 characters.
InterfaceName = Annotated[
    str,
    Form(
        "[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}",
        "the name of a network interface",
        "at most 15 letters, digits, '_', '.' and '-', as 'ip link' prints it",
    ),
]


def _address(value: str) -> str:
    """An address, or an address with the length of its network's prefix, in one form."""
    text, slash, prefix = value.partition("/")
    address = parse_ip(parse_host_address(text))
    if address is None:
        raise ValueError(f"{value!r} is a DNS name: give an IP address, which the name may point to")
    if address.is_loopback or address.is_reserved:
        raise ValueError(f"{value!r} is no address that a gateway can have: give a free one of the gateways' network")
    if not slash:
        return str(address)
    if not (prefix.isascii() and prefix.isdecimal() and 1 <= int(prefix) <= address.max_prefixlen):
        raise ValueError(
            f"{value!r} has no prefix length from 1 to {address.max_prefixlen}: write it such as 10.0.0.9/24"
        )
    network = ipaddress.ip_network(f"{address}/{prefix}", strict=False)
    ends = [network.network_address, network.broadcast_address] if address.version == 4 else [network.network_address]
    if network.prefixlen < address.max_prefixlen - 1 and address in ends:
        raise ValueError(f"{value!r} is the address of a whole network: give one of a host in it")
    return f"{address}/{int(prefix)}"


class VirtualAddress(Strict):
    """An address that one gateway has at a time; another one takes it over by VRRP."""

    address: Annotated[str, AfterValidator(_address)] = Field(
        description="A free IPv4 or IPv6 address of the gateways' network, for clients. A prefix length after '/' is "
        "needed in a network of its own alone. Default of the length: 32 for IPv4, 128 for IPv6."
    )
    interface: InterfaceName = Field(
        description="The network interface of the gateways that gets the address, such as eth0."
    )
    interfaces: dict[Name, InterfaceName] = Field(
        default={}, description="The interface of gateways on which it has another name, by gateway."
    )
    router_id: Annotated[int, Field(ge=1, le=255), WHOLE] = Field(
        default=51, description="The virtual router id of VRRP. Two virtual addresses of one network need two."
    )

    @property
    def ip(self) -> IpAddress:
        """The address without its prefix."""
        return ipaddress.ip_interface(self.address).ip

    @property
    def network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        """The network that becomes local to the gateway that has the address; by default the address alone."""
        return ipaddress.ip_interface(self.address).network

    def interface_of(self, gateway: str) -> str:
        """The interface of a gateway that gets the address."""
        return self.interfaces.get(gateway, self.interface)
