"""Networks that an account has: what the pools of one network must agree on before anything is asked of a cloud."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.existing import Existing


def of(host: HostPlan) -> Existing | None:
    """The network of the account that a host is in; None for one that the stack makes."""
    return host.rented.placement.existing if host.rented else None


def place(host: HostPlan) -> tuple[str, ...]:
    """The key path of a host's network in ``fleet.yml``."""
    return (*host.section, "placement", "existing")


def disagreeing(name: str, hosts: Sequence[HostPlan], document: yaml_document.Document) -> Iterator[FleetError]:
    """Pools that need different networks where the stack has one: in a region, project or compartment.

    A fleet has one network there, because its gateways reach hosts by it; hosts of another one are another fleet.

    Args:
        name: the network, for messages.
        hosts: its hosts.
        document: the fleet's file.
    """
    pools = {host.pool: host for host in reversed(hosts)}
    first, *others = [pools[pool] for pool in dict.fromkeys(host.pool for host in hosts)]
    mine = of(first)
    for host in others:
        other = of(host)
        if (mine and mine.network_id) != (other and other.network_id):
            yield document.error(
                place(host),
                f"{_named(other)}, and {first.pool} {_named(mine)}: a fleet has one network in {name}",
                "give both the same network, or make two fleets of them",
            )
        elif mine and other and mine.has_own_rules != other.has_own_rules:
            with_rules, without = (first, host) if mine.has_own_rules else (host, first)
            yield document.error(
                place(host),
                f"{with_rules.pool} has firewall rules of the account, and {without.pool} has rules of the stack",
                "let the account's rules guard all hosts of a network, or none: the stack's rules name its own groups",
            )
        elif mine and other and mine.range and other.range and mine.range != other.range:
            yield document.error(
                (*place(host), "range"), f"is {other.range}, and {first.pool} has {mine.range}", "give it once"
            )


def _named(existing: Existing | None) -> str:
    return f"is in {' '.join(filter(None, existing.network_id))}" if existing else "is in one that the stack makes"
