"""Plan -> the keepalived configuration of each gateway, by which they share a virtual address."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_fleet.base.addresses import host_port
from vllm_fleet.schema.fleet import Gateway
from vllm_fleet.schema.virtual_address import VirtualAddress

CONFIG = "/etc/keepalived/keepalived.conf"
DROP_IN = "/etc/systemd/system/keepalived.service.d/vllm-fleet.conf"
UNIT = "keepalived.service"
#: The account of the check: nothing on a gateway runs as it, and it owns no file there.
CHECK_ACCOUNT = "vllm"
#: The first gateway of the plan; each further one has one less. The highest for a backup is 254.
_FIRST_PRIORITY = 200


@dataclass(frozen=True)
class Member:
    """A gateway that shares the address.

    Attributes:
        name: of the gateway.
        address: its own IP address, of the family of the shared one.
        interface: its network interface that gets the shared address.
    """

    name: str
    address: str
    interface: str


def keepalived_config(gateway: Gateway, shared: VirtualAddress, members: Sequence[Member], name: str) -> str:
    """The whole ``keepalived.conf`` of one gateway.

    Adverts go from each gateway to each other one, without multicast, which racks filter. VRRP version 3 has no
    authentication (RFC 5798, 9): its passwords were sent in plain text. In its place packets are taken from the other
    gateways alone, and only with the TTL that no router has lowered, so from the same link; who can send those could
    answer ARP for the address as well.

    A gateway that is not healthy gives the address away, and does not take it back by itself (``nopreempt``): each move
    cuts the connections of the gateway that had it.

    Args:
        gateway: the gateways of the fleet.
        shared: the address that they share.
        members: all gateways, in the order of the plan.
        name: the gateway whose file it is.
    """
    own = next(member for member in members if member.name == name)
    others = [member for member in members if member.name != name]
    scheme = "https" if gateway.tls else "http"
    peers = " ".join(f"{scheme}://{host_port(member.address, gateway.port)}" for member in others)
    # An address that is deprecated is never the source of a connection; IPv4 takes the first one of the interface.
    lifetime = " preferred_lft 0" if shared.ip.version == 6 else ""
    lines = [
        "# Made by vllm-fleet; another run replaces what is changed here.",
        "global_defs {",
        f"  router_id {name}",
        "  vrrp_version 3",
        "  enable_script_security",
        f"  script_user {CHECK_ACCOUNT} {CHECK_ACCOUNT}",
        "  vrrp_check_unicast_src",
        # Switches and neighbours that have missed the first announcement learn it within a minute.
        "  vrrp_garp_master_refresh 60",
        "  vrrp_garp_master_refresh_repeat 2",
        "}",
        "vrrp_script gateway_healthy {",
        f'  script "/usr/local/libexec/vllm-gateway healthy {peers}"',
        "  interval 1",
        # Longer than the program itself waits.
        "  timeout 3",
        "  fall 2",
        "  rise 2",
        # Not before the first answer.
        "  init_fail",
        "}",
        "vrrp_instance api {",
        f"  interface {own.interface}",
        f"  virtual_router_id {shared.router_id}",
        "  state BACKUP",
        "  nopreempt",
        f"  priority {_FIRST_PRIORITY - members.index(own)}",
        "  advert_int 1",
        f"  unicast_src_ip {own.address}",
        "  unicast_ttl 255",
        "  unicast_peer {",
        *(f"    {member.address} min_ttl 255 max_ttl 255" for member in others),
        "  }",
        "  virtual_ipaddress {",
        f"    {shared.ip}/{shared.network.prefixlen}{lifetime}",
        "  }",
        "  track_script {",
        "    gateway_healthy",
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"
