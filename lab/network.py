"""The lab's network: a bridge with the first address of the subnet, and NAT to the outside."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lab import shell, state
from lab.spec import NetworkSpec
from lab.tree import require_disk
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import ErrorCode, FleetError

_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
#: Outside the cache: it belongs to the machine, and a reboot removes it together with the setting.
_FORWARDING_BEFORE = Path("/run/vllm-fleet-lab/ip_forward")
_LOCK = "network"
_TABLE_PREFIX = "vllm_fleet_"


def table_name(bridge: str) -> str:
    """The nft table of a lab."""
    return f"{_TABLE_PREFIX}{bridge.replace('-', '_')}"


def ruleset(spec: NetworkSpec) -> str:
    """The lab's table for ``nft -f``; it replaces an earlier one atomically."""
    table, bridge, subnet = table_name(spec.bridge), spec.bridge, spec.subnet
    return (
        f"table ip {table} {{}}\n"
        f"delete table ip {table}\n"
        f"table ip {table} {{\n"
        "  chain postrouting {\n"
        "    type nat hook postrouting priority 100; policy accept;\n"
        f'    ip saddr {subnet} oifname != "{bridge}" masquerade\n'
        "  }\n"
        "}\n"
    )


def closed_forward_chains(listing: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Forward chains of other programs whose policy is drop, as (family, table, chain).

    An accept in the lab's own table does not overrule their drop (Docker, ufw): they need a rule for the lab's bridge.

    Args:
        listing: what ``nft -j list chains`` prints.
    """
    for item in listing.get("nftables", []):
        chain = item.get("chain", {})
        if chain.get("hook") == "forward" and chain.get("policy") == "drop" and chain["family"] in ("ip", "inet"):
            yield chain["family"], chain["table"], chain["name"]


def own_rules(listing: Mapping[str, Any], bridge: str) -> Iterator[tuple[str, str, str, int]]:
    """The rules of a lab in chains of other programs, as (family, table, chain, handle).

    Args:
        listing: what ``nft -j list ruleset`` prints.
        bridge: the lab's bridge.
    """
    for item in listing.get("nftables", []):
        rule = item.get("rule", {})
        if rule.get("comment") == _comment(bridge):
            yield rule["family"], rule["table"], rule["chain"], rule["handle"]


def overlaps(subnet: ipaddress.IPv4Network, bridge: str, routes: Iterable[Mapping[str, Any]]) -> tuple[str, str] | None:
    """The first route of another interface that shares addresses with a subnet: (network, interface).

    Args:
        subnet: the lab's subnet.
        bridge: the lab's interface.
        routes: what ``ip -j -4 route show table all`` prints.
    """
    for route in routes:
        if route.get("dst", "default") == "default" or route.get("dev") in (bridge, None):
            continue
        try:
            other = ipaddress.IPv4Network(route["dst"])
        except ValueError:
            continue
        if not other.is_multicast and other.prefixlen > 0 and subnet.overlaps(other):
            return str(other), route["dev"]
    return None


def create(spec: NetworkSpec, earlier_owner: str | None = None) -> None:
    """Creates the network, or repairs it.

    Args:
        spec: the network.
        earlier_owner: the owner before the fleet's folder was moved.

    Raises:
        FleetError: not root; a tool, the kernel's bridge or disk space is missing; or the name or the addresses of
            the bridge are in use. Nothing was changed then.
    """
    shell.require()
    with state.locked(_LOCK):
        known = _refuse_strangers(spec, {spec.owner, earlier_owner or spec.owner})
        if not known:  # the hosts of an existing lab may use their share already
            require_disk(state.lab_dir(spec.bridge), spec.disk_gib)
        state.write_json(state.lab_dir(spec.bridge) / "lab.json", spec.properties())
        if _link(spec.bridge) is None:
            _add_bridge(spec, keep_state=known)
        shell.run("ip", "address", "replace", f"{spec.gateway}/{spec.network.prefixlen}", "dev", spec.bridge)
        shell.run("ip", "link", "set", spec.bridge, "up")
        _remember_forwarding()
        _FORWARDING.write_text("1", encoding="ascii")
        shell.run("nft", "-f", "-", text_in=ruleset(spec))
        _open_chains(spec.bridge)


def damage(spec: NetworkSpec) -> str | None:
    """The damage of the network: ``gone``, another word for what :func:`create` repairs, or None."""
    shell.require()
    link = _link(spec.bridge)
    owner = state.read(state.lab_dir(spec.bridge) / "lab.json").get("owner")
    if link is None or owner != spec.owner:
        return "gone"
    addresses = [item["local"] for item in link["addr_info"] if item["family"] == "inet"]
    if spec.gateway not in addresses:
        return "address missing"
    if "UP" not in link["flags"]:
        return "bridge down"
    if _FORWARDING.read_text(encoding="ascii").strip() != "1":
        return "forwarding off"
    listing = _listing()
    if table_name(spec.bridge) not in _tables(listing):
        return "nat missing"
    if _shut_chains(listing, spec.bridge):
        return "another table blocks forwarding"
    return None


def delete(bridge: str) -> None:
    """Removes a lab's network and the rest of its state; does nothing without one."""
    shell.require()
    with state.locked(_LOCK):
        for family, table, chain, handle in own_rules(_listing(), bridge):
            shell.run("nft", "delete", "rule", family, table, chain, "handle", str(handle))
        name = table_name(bridge)
        shell.run("nft", "-f", "-", text_in=f"table ip {name} {{}}\ndelete table ip {name}\n")
        ours = (state.lab_dir(bridge) / "lab.json").is_file()
        if ours and _link(bridge) is not None:
            shell.run("ip", "link", "delete", bridge)
        state.remove_tree(state.lab_dir(bridge))
        _restore_forwarding()


def _refuse_strangers(spec: NetworkSpec, owners: set[str]) -> bool:
    """Whether this lab exists already; an error where another owner has the bridge or the addresses."""
    known = state.read(state.lab_dir(spec.bridge) / "lab.json")
    if known and known.get("owner") not in owners:
        raise FleetError(
            f"the bridge {spec.bridge} belongs to the lab of {known.get('owner')}",
            f"take another 'placement.bridge', or remove that lab: python -m lab down --lab {spec.bridge}",
            key="placement.bridge",
            code=ErrorCode.REFUSED,
        )
    if not known and _link(spec.bridge) is not None:
        raise FleetError(
            f"this machine has an interface {spec.bridge} that is not the lab's",
            "take another 'placement.bridge'",
            key="placement.bridge",
            code=ErrorCode.REFUSED,
        )
    routes = json.loads(shell.run("ip", "-j", "-4", "route", "show", "table", "all") or "[]")
    if other := overlaps(spec.network, spec.bridge, routes):
        raise FleetError(
            f"the subnet {spec.subnet} overlaps {other[0]} at {other[1]}",
            "take another 'placement.subnet'",
            key="placement.subnet",
            code=ErrorCode.REFUSED,
        )
    return bool(known)


def _link(bridge: str) -> dict[str, Any] | None:
    if not Path(f"/sys/class/net/{bridge}").exists():
        return None
    links: list[dict[str, Any]] = json.loads(shell.run("ip", "-j", "address", "show", "dev", bridge))
    return links[0]


def _add_bridge(spec: NetworkSpec, keep_state: bool) -> None:
    try:
        shell.run("ip", "link", "add", spec.bridge, "type", "bridge")
    except FleetError as fault:
        if not keep_state:
            state.remove_tree(state.lab_dir(spec.bridge))
        raise FleetError(
            f"this machine cannot create a bridge: {fault.message}",
            "it needs the kernel module 'bridge' and, in a container, the right to add interfaces (--privileged)",
            code=ErrorCode.REFUSED,
        ) from None


def _comment(bridge: str) -> str:
    return f"vllm-fleet lab {bridge}"


def _open_chains(bridge: str) -> None:
    for chain in _shut_chains(_listing(), bridge):
        for match in (["iifname", bridge], ["oifname", bridge, "ct", "state", "established,related"]):
            shell.run("nft", "insert", "rule", *chain, *match, "accept", "comment", f'"{_comment(bridge)}"')


def _shut_chains(listing: Mapping[str, Any], bridge: str) -> list[tuple[str, str, str]]:
    """The closed chains without a rule for the lab."""
    done = {own_rule[:3] for own_rule in own_rules(listing, bridge)}
    return [chain for chain in closed_forward_chains(listing) if chain not in done]


def _remember_forwarding() -> None:
    """Saves the forwarding settings of the machine before its first lab."""
    if not _FORWARDING_BEFORE.exists():
        write_atomically(_FORWARDING_BEFORE, _FORWARDING.read_text(encoding="ascii").strip())


def _restore_forwarding() -> None:
    """Restores the forwarding settings, unless any lab is left on the machine."""
    if _FORWARDING_BEFORE.exists() and not any(name.startswith(_TABLE_PREFIX) for name in _tables(_listing())):
        _FORWARDING.write_text(_FORWARDING_BEFORE.read_text(encoding="ascii"), encoding="ascii")
        _FORWARDING_BEFORE.unlink()
        _FORWARDING_BEFORE.parent.rmdir()


def _listing() -> dict[str, Any]:
    listing: dict[str, Any] = json.loads(shell.run("nft", "-j", "list", "ruleset"))
    return listing


def _tables(listing: Mapping[str, Any]) -> list[str]:
    return [item["table"]["name"] for item in listing["nftables"] if "table" in item]
