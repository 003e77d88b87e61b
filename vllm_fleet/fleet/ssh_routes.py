"""How the controller reaches each host: directly, or through a gateway where the host has no public address."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.private_networks import name_of
from vllm_fleet.schema.fleet import Access


def is_private(host: HostPlan) -> bool:
    """Whether a host is rented without a public address."""
    return host.rented is not None and not host.rented.placement.public_address


def jumps(hosts: Sequence[HostPlan], access: Access) -> Mapping[str, str]:
    """Host -> the gateway that it is reached through; hosts that are reached directly are left out.

    A gateway of the host's own network, or any where networks are joined. Where none has a public address either, the
    controller must be inside, and reaches everything straight.
    """
    if access.ssh_through == "direct":
        return {}
    doors: dict[str, str] = {}
    for host in hosts:
        if host.kind == "gateway" and not is_private(host):
            doors.setdefault(name_of(host), host.name)
    joined = next(iter(doors.values()), None) if access.joined_networks else None
    ways = {host.name: doors.get(name_of(host), joined) for host in hosts if is_private(host)}
    return {name: door for name, door in ways.items() if door}


def unreachable(hosts: Sequence[HostPlan], access: Access, document: yaml_document.Document) -> Iterator[FleetError]:
    """Pools that have no public address and no gateway to come through: in their own network, or in a joined one."""
    gateways = {name_of(host) for host in hosts if host.kind == "gateway"}
    if access.ssh_through == "direct" or (access.joined_networks and gateways):
        return
    for pool in dict.fromkeys(host.pool for host in hosts if host.kind == "serving" and is_private(host)):
        network = next(name_of(host) for host in hosts if host.pool == pool)
        if network not in gateways:
            yield document.error(
                ("pools", pool, "placement"),
                f"gives its hosts no public address, and {network} has no gateway to reach them through",
                "set public_address: true there, or access.ssh_through: direct where the controller is inside",
            )


def apart(hosts: Sequence[HostPlan], access: Access, document: yaml_document.Document) -> Iterator[FleetError]:
    """Pools that the gateways do not reach: their requests would go over the internet, in plain text."""
    gateways = {name_of(host) for host in hosts if host.kind == "gateway"}
    if access.joined_networks or not gateways:
        return
    for pool in dict.fromkeys(host.pool for host in hosts if host.kind == "serving"):
        network = next(name_of(host) for host in hosts if host.pool == pool)
        if network not in gateways:
            yield document.error(
                ("pools", pool),
                f"is in {network}, and the gateway is in {', '.join(sorted(gateways))}",
                "put it in another fleet, or join the networks and set access.joined_networks",
            )


def arguments(known_hosts: Path, jump: tuple[str, str, int] | None, key: Path | None) -> str:
    """The options of ``ssh`` besides address, port and user, as ``ansible_ssh_common_args`` takes it.

    Args:
        known_hosts: the file with the keys of the fleet's hosts, the only ones that are taken.
        jump: user, address and port of the gateway to come through.
        key: the private key, for that gateway too.
    """
    known = f"-o UserKnownHostsFile={known_hosts}"
    if jump is None:
        return known
    user, address, port = jump
    # Not -J: the ssh that it starts would read neither this known_hosts nor this key.
    words = ["ssh", "-W", "[%h]:%p", "-o", f"UserKnownHostsFile={known_hosts}"]
    words += ["-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-p", str(port)]
    words += ["-i", str(key)] if key else []
    command = shlex.join([*words, f"{user}@{address}"])
    return f"{known} -o {shlex.quote(f'ProxyCommand={command}')}"
