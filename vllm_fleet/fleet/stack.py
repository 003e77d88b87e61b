"""``stack.json``: the As-Is that the Pulumi stack wrote, checked against the plan."""

from __future__ import annotations

import datetime as dt
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from vllm_fleet.base import paths, yaml_document
from vllm_fleet.base.addresses import parse_ip
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import raise_all
from vllm_fleet.fleet import host_keys_file, plain_api, ssh_routes, standing, virtual_address, weights_disk
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.fleet.private_networks import name_of
from vllm_fleet.fleet.service_addresses import Resolver, ServiceAddress, resolve_addresses
from vllm_fleet.schema.capacity_block import CapacityBlock
from vllm_fleet.schema.cloud import AwsPlacement
from vllm_fleet.schema.fleet import Stack, StackHost, StaticHost

#: So many differences between stack and plan are told; the others are counted.
_MOST_DIFFERENCES = 10


def up_command(fleet: str, *options: str) -> str:
    """The command that updates the stack of a fleet, which has the fleet's name.

    Args:
        fleet: the fleet's name.
        options: further options.
    """
    return shlex.join(["pulumi", "up", "--stack", fleet, *options])


def refresh_options(plan: Plan) -> tuple[str, ...]:
    """The options with which ``pulumi`` sees the hosts that a cloud has ended: only a refresh asks for them."""
    return ("--refresh",) if any(host.may_vanish for host in plan.hosts) else ()


@dataclass(frozen=True)
class Location:
    """How a host is reached.

    Attributes:
        address: by SSH, from the controller.
        port: of its sshd.
        user: who logs in.
        ssh_host_keys: the keys that it may show; two while one replaces the other.
        service_address: IP address for the other hosts of the fleet; what its services listen on.
        connect_from: the IP addresses that it connects from to the other hosts.
        jump: the gateway that it is reached through; None: straight.
        id: of the machine, in its cloud; empty for static hosts.
        ssh_alias: its name in ssh's configuration; empty: the address.
        keys_file: the file that contains ``ssh_host_keys``, as a user types it.
        model_volume: what the cloud calls its disk for models; empty for a host without one.
    """

    address: str
    port: int
    user: str
    ssh_host_keys: tuple[str, ...]
    service_address: str
    connect_from: tuple[str, ...]
    jump: str | None = None
    id: str = ""
    ssh_alias: str = ""
    keys_file: str = ""
    model_volume: str = ""


def locations(plan: Plan, resolver: Resolver) -> Mapping[str, Location]:
    """Where every host of the plan is: static hosts from the fleet, all others from the stack.

    Args:
        plan: the fleet.
        resolver: resolves the DNS names of static hosts.

    Raises:
        FleetError: no stack, one of another version or fleet, a host too few, or a name that does not resolve. A host
            too many leaves: the gateways lose it before the stack does.
    """
    made = _read_made(plan, leaving=True)
    own = _own_keys(plan, made)
    jumps = ssh_routes.jumps(plan.hosts, plan.access)
    inside = _service_addresses(plan, resolver)
    return {
        host.name: _static(plan, host, host.static, inside[host.name], own.get(host.name))
        if host.static
        else _made(plan, made[host.name], own.get(host.name), jumps.get(host.name))
        for host in plan.hosts
    }


def address_errors(plan: Plan, resolver: Resolver) -> tuple[FleetError, ...]:
    """What is wrong with the addresses of static hosts, with their DNS names resolved.

    Args:
        plan: the fleet.
        resolver: resolves the DNS names.
    """
    try:
        _service_addresses(plan, resolver)
    except FleetError as error:
        return (error, *error.others)
    return ()


def _service_addresses(plan: Plan, resolver: Resolver) -> Mapping[str, ServiceAddress]:
    inside = resolve_addresses(plan.hosts, plan.document, resolver)
    resolved = {name: address.connect_from for name, address in inside.items()}
    known = (plan.hosts, plan.spec, plan.document, resolved)
    raise_all([*plain_api.plain_api_errors(*known), *virtual_address.virtual_address_errors(*known)])
    return inside


def check_stack(plan: Plan) -> None:
    """Compares the stack with the plan, without resolving names. Hosts that wait for their capacity are not missed.

    Raises:
        FleetError: as :func:`locations`, but for names; and a host too many.
    """
    _read_made(without_waiting(plan))


def waiting(plan: Plan) -> Mapping[str, tuple[CapacityBlock, tuple[HostPlan, ...]]]:
    """Pool -> its capacity block, which is bought and has not begun, and its hosts, which are made after its start.

    None where the stack has written nothing yet.

    Raises:
        FleetError: its file is there and cannot be read.
    """
    ordered = [(host, offering) for host in plan.hosts if (offering := _ordered(host))]
    # Nearly every fleet orders nothing: its file is not read once more.
    if not ordered or not is_written(plan):
        return {}
    stack, now = _read(plan), dt.datetime.now(dt.UTC)
    found: dict[str, tuple[CapacityBlock, tuple[HostPlan, ...]]] = {}
    for host, offering in ordered:
        block = stack.blocks.get(host.pool) if host.name not in stack.hosts else None
        if block and block.offering == offering and not block.begun(now):
            _, others = found.get(host.pool, (block, ()))
            found[host.pool] = (block, (*others, host))
    return found


def without_waiting(plan: Plan) -> Plan:
    """A plan without the hosts that wait for their capacity: all others can be set up meanwhile.

    Raises:
        FleetError: as :func:`waiting`.
    """
    later = {host.name for _, hosts in waiting(plan).values() for host in hosts}
    return replace(plan, hosts=tuple(host for host in plan.hosts if host.name not in later)) if later else plan


def waiting_notes(plan: Plan) -> tuple[str, ...]:
    """A line for each pool that waits: how many of its hosts, for what, and until when.

    Raises:
        FleetError: as :func:`waiting`.
    """
    return tuple(
        f"{pool}: {len(hosts)} hosts are left out: their capacity block {block.id} starts at {block.starts}, and the "
        f"first '{up_command(plan.fleet)}' after that makes them"
        for pool, (block, hosts) in waiting(plan).items()
    )


def _ordered(host: HostPlan) -> str | None:
    """The offering of the capacity block that the fleet orders for a host; None without an order."""
    placement = host.rented.placement if host.rented else None
    purchase = placement.capacity.purchase if isinstance(placement, AwsPlacement) else None
    return purchase.offering_id if purchase else None


def _read_made(plan: Plan, leaving: bool = False) -> Mapping[str, StackHost]:
    for host in plan.hosts:
        if host.cloud == "static" and host.static is None:
            raise plan.document.error(
                ("gateway", "hosts"),
                "asks for gateways that do not exist yet, and the cloud 'static' creates none",
                "list your own under gateway.static, or set gateway.cloud",
            )
    rented = [host for host in plan.hosts if host.cloud != "static"]
    made = _read(plan).hosts if rented else {}
    file = paths.display(plan.directory / "stack.json")
    missing = [host.name for host in rented if host.name not in made]
    extra = sorted(set(made) - {host.name for host in rented})
    diskless = [host.name for host in rented if _lacks_volume(host, made.get(host.name))]
    if missing or diskless or (extra and not leaving):
        differences = [f"{name} is in {plan.document.file} but not in {file}" for name in missing]
        differences += [f"{name} is in {file} but not in {plan.document.file}" for name in extra]
        differences += [
            f"{name} has no disk for models in {file}, and one in {plan.document.file}" for name in diskless
        ]
        more = len(differences) - _MOST_DIFFERENCES
        shown = [*differences[:_MOST_DIFFERENCES], *([f"and {more} more hosts"] if more > 0 else [])]
        raise FleetError("; ".join(shown), f"run '{up_command(plan.fleet)}'", file)
    return made


def _lacks_volume(host: HostPlan, made: StackHost | None) -> bool:
    """Whether a host that the stack has made lacks the disk for models that the plan has: it is from before."""
    wanted = host.rented is not None and weights_disk.find(host.rented).kind == "volume"
    return wanted and made is not None and made.model_volume is None


def is_written(plan: Plan) -> bool:
    """Whether the stack has written its file, or something else is in its place."""
    return os.path.lexists(plan.directory / "stack.json")


def find_moved(plan: Plan) -> tuple[FleetError, ...]:
    """What the fleet asks for, and no host of its stack can follow; none where the stack has written nothing yet."""
    if not is_written(plan):
        return ()
    try:
        return tuple(standing.moved_errors(plan, _read(plan)))
    except FleetError:
        # All that needs the hosts reports a wrong file; without it the places of the hosts are unknown.
        return ()


def made_hosts(plan: Plan) -> tuple[str, ...]:
    """The hosts that the stack has; none where it has written nothing yet.

    Raises:
        FleetError: its file is there and cannot be read.
    """
    return tuple(_read(plan).hosts) if is_written(plan) else ()


def _own_keys(plan: Plan, made: Mapping[str, StackHost]) -> Mapping[str, tuple[str, ...]]:
    """The keys that hosts made themselves; they replace the keys of the stack."""
    keys_file = host_keys_file.load(plan.directory, {host.name for host in plan.hosts})
    return host_keys_file.standing(keys_file, {name: host.id for name, host in made.items()})


def _static(
    plan: Plan, host: HostPlan, static: StaticHost, inside: ServiceAddress, own: tuple[str, ...] | None
) -> Location:
    return Location(
        static.address,
        static.port,
        host.user,
        own or ((static.ssh_host_key,) if static.ssh_host_key else ()),
        inside.listen,
        inside.connect_from,
        ssh_alias=static.ssh_alias or "",
        keys_file=_own_file(plan) if own else plan.document.file,
    )


def _made(plan: Plan, host: StackHost, own: tuple[str, ...] | None, jump: str | None) -> Location:
    service = host.private_address or host.address
    return Location(
        host.address,
        22,
        host.user,
        own or (host.ssh_host_key,),
        service,
        (service,),
        jump,
        host.id,
        keys_file=_own_file(plan) if own else paths.display(plan.directory / "stack.json"),
        model_volume=host.model_volume or "",
    )


def _own_file(plan: Plan) -> str:
    return paths.display(plan.directory / host_keys_file.FILE)


def _wrong_addresses(stack: Stack, plan: Plan, document: yaml_document.Document) -> Iterator[FleetError]:
    """Addresses that a host cannot have: of the machine itself, or of another host in the same network."""
    networks = {host.name: name_of(host) for host in plan.hosts}
    seen: dict[tuple[str, str], str] = {}
    for name, host in stack.hosts.items():
        for key in ("address", "private_address"):
            text = getattr(host, key)
            if text is None:
                continue
            if (address := parse_ip(text)) and address.is_loopback:
                yield document.error(("hosts", name, key), f"{text} is a loopback address: no other machine reaches it")
            other = seen.setdefault((networks.get(name, ""), text), name)
            if other != name:
                yield document.error(("hosts", name, key), f"{name} and {other} both have the address {text}")


def _read(plan: Plan) -> Stack:
    path = plan.directory / "stack.json"
    file = paths.display(path)
    if not is_written(plan):
        raise FleetError(f"the hosts of {plan.document.file} do not exist yet", f"run '{up_command(plan.fleet)}'", file)
    try:
        document = yaml_document.read_json(path)
        version = document.data.get("version") if isinstance(document.data, dict) else None
        # To Python, true and 1.0 are 1.
        stack = yaml_document.parse(document, Stack) if version == 1 and type(version) is int else None
        if stack:
            raise_all(_wrong_addresses(stack, plan, document))
    except FleetError as fault:
        # Pulumi replaces a file, not a folder or a link that leads nowhere.
        remove = "" if path.is_file() else "remove it, and "
        for error in (fault, *fault.others):
            error.hint = f"{remove}run '{up_command(plan.fleet, '--refresh')}' to write it again"
        raise
    if stack is None:
        message = f"has version {version!r}, this release reads version 1"
        raise document.error(("version",), message, f"run '{up_command(plan.fleet)}' with this release")
    if stack.fleet != plan.fleet:
        raise document.error(
            ("fleet",),
            f"belongs to the fleet {stack.fleet!r}, {plan.document.file} to {plan.fleet!r}",
            "select the stack of this fleet",
        )
    return stack
