"""What every cloud's component takes and gives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, TypeVar

import pulumi

from infra.zones import Zones
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.yaml_document import Document
from vllm_fleet.catalogue.rental import Rented
from vllm_fleet.fleet.host_plan import FIRST_PORT, READINESS_OFFSET, HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.fleet.private_networks import block, members
from vllm_fleet.fleet.ssh_routes import is_private
from vllm_fleet.schema.cloud import Placement
from vllm_fleet.schema.fleet import Access

#: The ports of vLLM and of its readiness, as the plan counts them.
SERVICE_PORTS = (FIRST_PORT, FIRST_PORT + READINESS_OFFSET + 99)


def rented(host: HostPlan) -> Rented:
    """How a host is rented; the plan has it for every host of a cloud."""
    if host.rented is None:
        raise FleetError("is not a host that can be rented", host=host.name)
    return host.rented


P = TypeVar("P", bound=Placement)


def placed(host: HostPlan, kind: type[P]) -> P:
    """Where a host is, in the terms of its cloud; the plan has checked that they are this cloud's."""
    placement = rented(host).placement
    if not isinstance(placement, kind):
        raise FleetError(f"has a placement that is no {kind.__name__}", host=host.name)
    return placement


def range_of(hosts: Sequence[HostPlan]) -> IPv4Network:
    """The range of addresses of the network that hosts share, in a cloud that does not choose it itself."""
    found = block(hosts)
    if found is None:
        raise FleetError("is in a network without a range", host=hosts[0].name)
    return found


def has_private(hosts: Iterable[HostPlan]) -> bool:
    """Whether any of them has no public address, so that SSH must come from the gateways."""
    return any(is_private(host) for host in hosts)


def needs_nat(hosts: Iterable[HostPlan]) -> bool:
    """Whether any of them has no public address and still wants to reach out."""
    return any(is_private(host) and rented(host).placement.outbound == "nat" for host in hosts)


@dataclass(frozen=True)
class MirrorRule:
    """Who may fetch from a host of the fleet that serves the artifacts.

    Attributes:
        host: its name.
        kind: ``gateway`` or ``serving``, by which firewalls know it.
        ports: where it listens.
        far: the ranges of the networks that are joined with its own.
    """

    host: str
    kind: str
    ports: tuple[int, ...]
    far: tuple[str, ...]


def mirror_rule(plan: Plan) -> MirrorRule | None:
    """The rule of a plan; None where no rented host of it is the mirror."""
    spec = plan.spec.mirror
    host = next((host for host in plan.hosts if host.name == spec.host and host.rented), None)
    if host is None:
        return None
    ports = (spec.port, *((spec.registry_port,) if spec.registry_port else ()))
    others = [hosts for hosts in members(plan.hosts).values() if host not in hosts and hosts[0].rented]
    far = tuple(str(block(hosts)) for hosts in others) if plan.access.joined_networks else ()
    return MirrorRule(host.name, host.kind, ports, far)


@dataclass(frozen=True)
class CloudArgs:
    """The part of a plan that one cloud makes.

    Attributes:
        fleet: the fleet's name.
        directory: the fleet's folder.
        hosts: the hosts of this cloud, in the plan's order.
        access: who may reach them.
        document: the fleet's file, for errors with their place.
        authorised_keys: what a host's ``authorized_keys`` holds.
        zones: which zone a new host is made in.
        ports: where the gateway listens.
        unprotected: the hosts that this run may replace or delete.
        gateways: name -> address inside, of the gateways that were made before in another cloud or are static.
        mirror: who may fetch from the host that serves the artifacts, whatever its cloud.
    """

    fleet: str
    directory: Path
    hosts: tuple[HostPlan, ...]
    access: Access
    document: Document
    authorised_keys: pulumi.Input[str]
    zones: Zones
    ports: tuple[int, ...]
    unprotected: frozenset[str]
    gateways: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    mirror: MirrorRule | None = None

    def mirror_among(self, hosts: Iterable[HostPlan]) -> MirrorRule | None:
        """The rule of the mirror where it is one of the hosts."""
        return self.mirror if self.mirror and any(host.name == self.mirror.host for host in hosts) else None

    @property
    def networks(self) -> tuple[tuple[HostPlan, ...], ...]:
        """The hosts of each network; that of the gateways comes first, as the others may let its addresses in."""
        found = members(self.hosts).values()
        return tuple(sorted(found, key=lambda hosts: not any(host.kind == "gateway" for host in hosts)))

    def error(self, host: HostPlan, key: str | None, fault: FleetError) -> FleetError:
        """A fault in the placement of a host's pool, at its place in the fleet's file."""
        pool = ("gateway",) if host.kind == "gateway" else ("pools", host.pool)
        location = (*pool, "placement", *([key] if key else []))
        return self.document.error(location, fault.message, fault.hint, fault.code)


@dataclass(frozen=True)
class HostRecord:
    """One host as ``stack.json`` describes it."""

    address: pulumi.Input[str]
    id: pulumi.Input[str]
    user: pulumi.Input[str]
    ssh_host_key: pulumi.Input[str]
    zone: pulumi.Input[str]
    private_address: pulumi.Input[str] | None = None

    def inputs(self) -> dict[str, pulumi.Input[str]]:
        """The record as a mapping that may still hold outputs."""
        return {
            "address": self.address,
            **({"private_address": self.private_address} if self.private_address is not None else {}),
            "id": self.id,
            "user": self.user,
            "ssh_host_key": self.ssh_host_key,
            "zone": self.zone,
        }


class CloudComponent(pulumi.ComponentResource):
    """A component that makes the hosts of one cloud.

    Attributes:
        hosts: the hosts by name; a subclass fills it.
    """

    hosts: Mapping[str, HostRecord]

    def __init__(self, kind: str, name: str, opts: pulumi.ResourceOptions | None) -> None:
        super().__init__(f"fleet:infra:{kind}", name, None, opts)

    def far_gateways(self, args: CloudArgs, hosts: Iterable[HostPlan]) -> dict[str, pulumi.Input[str]]:
        """Name -> address of the gateways that a network lets in though they are in another one, joined with it.

        Args:
            args: the cloud's part of the plan; its gateways are made already, or are in this network.
            hosts: those of the network.
        """
        if not args.access.joined_networks or any(host.kind == "gateway" for host in hosts):
            return {}
        return {**args.gateways, **gateway_addresses(args.hosts, self.hosts)}


def gateway_addresses(hosts: Iterable[HostPlan], made: Mapping[str, HostRecord]) -> dict[str, pulumi.Input[str]]:
    """Name -> address inside of the gateways among hosts."""
    found: dict[str, pulumi.Input[str]] = {}
    for host in hosts:
        record = made.get(host.name)
        if record:
            inside = record.address if record.private_address is None else record.private_address
        else:
            inside = host.static.address if host.static else ""
        if host.kind == "gateway" and inside != "":
            found[host.name] = inside
    return found


def inventory(fleet: str, hosts: Mapping[str, HostRecord]) -> pulumi.Output[dict[str, Any]]:
    """The As-Is, once everything in it is known.

    Args:
        fleet: the fleet's name.
        hosts: its hosts by name.
    """
    records: dict[str, dict[str, Any]] = {name: dict(record.inputs()) for name, record in hosts.items()}
    # One wait for all of them: an output for every value, as a nested mapping would make, is dear at 1000 hosts.
    open_ = [
        (name, key, value)
        for name, record in records.items()
        for key, value in record.items()
        if isinstance(value, pulumi.Output)
    ]

    def fill(found: Sequence[Any]) -> dict[str, Any]:
        known = {name: dict(record) for name, record in records.items()}
        for (name, key, _), value in zip(open_, found, strict=True):
            known[name][key] = value
        return {"version": 1, "fleet": fleet, "hosts": known}

    return pulumi.Output.all(*(value for _, _, value in open_)).apply(fill)


def inventory_text(inventory: Mapping[str, Any]) -> str:
    """The bytes of ``stack.json``: those that ``pulumi stack output inventory --json`` prints."""
    return json.dumps(inventory, indent=2, sort_keys=True) + "\n"
