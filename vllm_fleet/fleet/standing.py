"""What a fleet.yml may no longer change once hosts stand: the place and the network that ``stack.json`` has for them.

No cloud moves a host to another region, project, zone or network. A network that hosts stand in cannot be replaced
either: the cloud refuses to delete it, and the run would leave two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.fleet import existing_networks
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.fleet.private_networks import block, members
from vllm_fleet.schema.fleet import Stack, StackHost

#: The keys of a placement that say in which network its hosts are.
_PLACE = ("region", "project", "compartment")


def networks(plan: Plan) -> Mapping[str, str | None]:
    """Network -> what it is, as ``stack.json`` records it.

    That is the id of a network of the account, else the range of one that the stack makes; None where the cloud chooses
    the range.
    """
    return {name: _what(hosts) for name, hosts in _rented(plan).items()}


def moved_errors(plan: Plan, stack: Stack) -> Iterator[FleetError]:
    """What the fleet asks for, and no living host can follow; one error for each key of the file.

    Args:
        plan: the To-Be.
        stack: the As-Is. One that an earlier release wrote has no networks: then addresses and zones decide.
    """
    told: set[tuple[str, ...]] = set()
    for name, hosts in _rented(plan).items():
        living = [(host, stack.hosts[host.name]) for host in hosts if host.name in stack.hosts]
        for host, record in living:
            for key, message, hint in _moved(host, record, name):
                location = _location(plan, host, key)
                if location not in told:
                    told.add(location)
                    yield plan.document.error(location, message, hint, ErrorCode.REFUSED)
        stay = [(host, record) for host, record in living if record.network in (None, name)]
        if stay and (text := _resized(name, hosts, stay, stack)):
            host = next((host for host in hosts if _says_network(host)), stay[0][0])
            hint = "write the old one back: hosts in another network are other hosts"
            key = "existing" if existing_networks.of(host) else "network"
            yield plan.document.error(_location(plan, host, key), text, hint, ErrorCode.REFUSED)


def _rented(plan: Plan) -> Mapping[str, tuple[HostPlan, ...]]:
    return members(host for host in plan.hosts if host.rented)


def _what(hosts: Sequence[HostPlan]) -> str | None:
    existing = next(filter(None, map(existing_networks.of, hosts)), None)
    if existing:
        return " ".join(filter(None, existing.network_id))
    found = block(hosts)
    return str(found) if found else None


def _says_network(host: HostPlan) -> bool:
    return host.rented is not None and bool({"network", "existing"} & host.rented.placement.model_fields_set)


def _moved(host: HostPlan, record: StackHost, name: str) -> Iterator[tuple[str, str, str]]:
    """Key, message and hint of each place that a host is in and its placement does not allow."""
    if host.rented is None:
        return
    placement = host.rented.placement
    pool = "write the old one back, and add a pool for hosts in the new one"
    zones = placement.all_zones
    if record.network not in (None, name):
        for key in _PLACE:
            now = getattr(placement, key, None)
            if now is not None and now not in str(record.network).split():
                yield key, f"is {now}, but {host.name} stands in {record.network}: a host cannot move", pool
    elif record.network is None and not zones and record.zone != placement.region:
        yield "region", f"is {placement.region}, but {host.name} stands in {record.zone}: a host cannot move", pool
    elif zones and record.zone not in (*zones, placement.region):
        key = "zone" if placement.zone else "zones"
        text = f"has no {record.zone}, where {host.name} stands: a host cannot move"
        yield key, text, "keep the zone until no host stands in it; the last of 'zones' is tried last"


def _resized(
    name: str, hosts: tuple[HostPlan, ...], living: list[tuple[HostPlan, StackHost]], stack: Stack
) -> str | None:
    wanted = _what(hosts)
    if name in stack.networks:
        before = stack.networks[name]
        if wanted == before:
            return None
        was = before or "a range that the cloud chose"
        return f"is {wanted or 'left to the cloud'}, but {name} has {was}, and {living[0][0].name} stands in it"
    now = block(hosts)
    for host, record in living:
        address = record.private_address or ""
        if now and _is_outside(address, now):
            return f"is {wanted}, but {host.name} stands at {address}, in another network"
    return None


def _is_outside(address: str, network: object) -> bool:
    try:
        return ip_address(address) not in network  # type: ignore[operator]
    except ValueError:
        return False


def _location(plan: Plan, host: HostPlan, key: str) -> tuple[str, ...]:
    """Where the file gives a key of a host's placement: gateways take what they do not give from the first pool."""
    if host.kind == "gateway" and key in plan.spec.gateway.placement:
        return ("gateway", "placement", key)
    pool = next(iter(plan.spec.pools)) if host.kind == "gateway" else host.pool
    return ("pools", pool, "placement", key)
