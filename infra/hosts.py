"""The interface of the clouds' components: their arguments, their base class, and the record of a host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, TypeVar

import pulumi

from infra.gone import inventory_text as inventory_text
from infra.guard import Guard
from infra.keys import SshKeyPair
from infra.state import State
from infra.zones import Zones
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.yaml_document import Document
from vllm_fleet.catalogue.rental import Rented
from vllm_fleet.fleet import standing
from vllm_fleet.fleet.host_plan import FIRST_PORT, READINESS_OFFSET, HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.fleet.private_networks import block, members, name_of
from vllm_fleet.fleet.resource_names import network_name
from vllm_fleet.fleet.ssh_routes import is_private
from vllm_fleet.schema.account import Account
from vllm_fleet.schema.acme import CHALLENGE_PORT
from vllm_fleet.schema.cloud import Placement
from vllm_fleet.schema.fleet import Access

#: Every IPv4 address.
EVERYWHERE = "0.0.0.0/0"
#: The range of the ports of vLLM and of its readiness checks.
SERVICE_PORTS = (FIRST_PORT, FIRST_PORT + READINESS_OFFSET + 99)


def rented(host: HostPlan) -> Rented:
    """The rental of a host; the plan has one for every host of a cloud."""
    if host.rented is None:
        raise FleetError("is not a host that can be rented", host=host.name)
    return host.rented


P = TypeVar("P", bound=Placement)


def placed(host: HostPlan, kind: type[P]) -> P:
    """The placement of a host with its cloud's own type, which the plan has checked."""
    placement = rented(host).placement
    if not isinstance(placement, kind):
        raise FleetError(f"has a placement that is no {kind.__name__}", host=host.name)
    return placement


def range_of(hosts: Sequence[HostPlan]) -> IPv4Network:
    """The address range of the network that hosts share, in a cloud that does not choose one itself."""
    addresses = block(hosts)
    if addresses is None:
        raise FleetError("is in a network without a range", host=hosts[0].name)
    return addresses


def has_private(hosts: Iterable[HostPlan]) -> bool:
    """Whether any host has no public address, so that SSH must come through the gateways."""
    return any(is_private(host) for host in hosts)


def needs_nat(hosts: Iterable[HostPlan]) -> bool:
    """Whether any host has no public address and needs outbound traffic."""
    return any(is_private(host) and rented(host).placement.outbound == "nat" for host in hosts)


@dataclass(frozen=True)
class MirrorRule:
    """The firewall rule of a host of the fleet that serves as its mirror.

    Attributes:
        host: its name.
        kind: ``gateway`` or ``serving``, as in firewall rules.
        ports: the ports that it listens on.
        far: the address ranges of networks joined with its own.
    """

    host: str
    kind: str
    ports: tuple[int, ...]
    far: tuple[str, ...]


def mirror_rule(plan: Plan) -> MirrorRule | None:
    """The rule of a plan; None where no rented host is the mirror."""
    spec = plan.spec.mirror
    host = next((host for host in plan.hosts if host.name == spec.host and host.rented), None)
    if host is None:
        return None
    ports = (spec.port, *((spec.registry_port,) if spec.registry_port else ()))
    others = [hosts for hosts in members(plan.hosts).values() if host not in hosts and hosts[0].rented]
    far = tuple(str(block(hosts)) for hosts in others) if plan.access.joined_networks else ()
    return MirrorRule(host.name, host.kind, ports, far)


@dataclass(frozen=True)
class GatewayPort:
    """A port of the gateways, and who may open it.

    Attributes:
        name: what it is for, in the names of firewall rules.
        port: its number.
        networks: those that may open it, in CIDR form.
    """

    name: str
    port: int
    networks: Sequence[str]


def gateway_ports(plan: Plan) -> tuple[GatewayPort, ...]:
    """The ports of a plan's gateways: the API, and the challenges of a CA."""
    api = GatewayPort("api", plan.gateway.port, plan.access.api_from)
    tls = plan.gateway.tls
    if tls is None or tls.acme is None:
        return (api,)
    return (api, GatewayPort("acme", CHALLENGE_PORT, tls.acme.challenge_from))


@dataclass(frozen=True)
class CloudArgs:
    """The part of a plan that belongs to one cloud.

    Attributes:
        fleet: the fleet's name.
        directory: the fleet's folder.
        hosts: the hosts of this cloud, in the plan's order.
        access: who may connect to them.
        document: the fleet's file, for the line in errors.
        authorised_keys: the content of a host's ``authorized_keys``.
        zones: chooses the zone of a new host.
        ports: the ports of the gateways.
        peer_ports: the ports that gateways open to each other; all gateways are in one network.
        own_tags: the fleet's own tags.
        account: the only accounts in which the stack may do anything.
        unprotected: the hosts that this run may stop, replace or delete.
        gateways: name -> private address of the gateways in clouds that came before, and of static ones.
        mirror: the rule of the fleet's mirror, in whichever cloud it is.
        named: the hosts that this run is for: no other host changes in it; empty where it is for all.
        guard: refuses changes that stop a host; None where nothing is refused.
        state: what the stack has before this run.
    """

    fleet: str
    directory: Path
    hosts: tuple[HostPlan, ...]
    access: Access
    document: Document
    authorised_keys: pulumi.Input[str]
    zones: Zones
    ports: tuple[GatewayPort, ...]
    unprotected: frozenset[str]
    gateways: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    mirror: MirrorRule | None = None
    peer_ports: tuple[int, ...] = ()
    named: frozenset[str] = frozenset()
    guard: Guard | None = None
    own_tags: Mapping[str, str] = field(default_factory=dict)
    account: Account = field(default_factory=Account)
    state: State = field(default_factory=State)

    def network_name(self, host: HostPlan) -> str:
        """The name of the network of a host, which begins the names of its parts."""
        placements = [rented(other).placement for other in self.hosts]
        return network_name(self.fleet, rented(host).placement, placements)

    def mirror_among(self, hosts: Iterable[HostPlan]) -> MirrorRule | None:
        """The rule of the mirror when it is one of the hosts."""
        return self.mirror if self.mirror and any(host.name == self.mirror.host for host in hosts) else None

    def peer_ports_among(self, hosts: Iterable[HostPlan]) -> tuple[int, ...]:
        """The ports that gateways among the hosts open to each other; none in a network without a gateway."""
        return self.peer_ports if any(host.kind == "gateway" for host in hosts) else ()

    @property
    def networks(self) -> tuple[tuple[HostPlan, ...], ...]:
        """The hosts of each network; that of the gateways first, because the rules of others may need its addresses."""
        networks = members(self.hosts).values()
        return tuple(sorted(networks, key=lambda hosts: not any(host.kind == "gateway" for host in hosts)))

    @property
    def tags(self) -> dict[str, str]:
        """The tags, or labels, of every resource of the fleet: its own, and those of the project."""
        return {**self.own_tags, "fleet": self.fleet, "managed-by": "vllm-fleet"}

    def protects(self, host: HostPlan) -> bool:
        """Whether this run may neither replace nor delete a host."""
        return host.name not in self.unprotected

    def host_options(self, host: HostPlan, zone: str, kept: Sequence[str], image: str) -> pulumi.ResourceOptions:
        """The resource options of a host: protection, ignored changes, and hooks that record its zone.

        Args:
            host: a rented host.
            zone: its zone.
            kept: inputs whose changes are ignored, because they would stop or replace a host that exists.
            image: the input with the image; its changes are ignored too, unless the fleet names an image.
        """
        ignored = [*kept, *([] if rented(host).placement.image else [image])]
        hooks = self.zones.hooks(host, zone)
        if self.guard:
            hooks = pulumi.ResourceHookBinding.merge(hooks, self.guard.hooks)
        return pulumi.ResourceOptions(
            protect=self.protects(host), ignore_changes=self.ignored(host, ignored), hooks=hooks
        )

    def ignored(self, host: HostPlan, kept: Sequence[str]) -> list[str]:
        """The inputs whose changes are ignored, of a host or its disk: all of them in a run for other hosts.

        Args:
            host: the host.
            kept: inputs whose changes are always ignored.
        """
        return ["*"] if self.named and host.name not in self.named else list(kept)

    def disk_options(self, host: HostPlan, kept: Sequence[str] = ()) -> pulumi.ResourceOptions:
        """The resource options of a disk of a host, and of what attaches it: it is protected as the host is.

        Args:
            host: the host.
            kept: inputs whose changes are ignored.
        """
        return pulumi.ResourceOptions(protect=self.protects(host), ignore_changes=self.ignored(host, kept))

    def host_key(self, host: HostPlan, opts: pulumi.ResourceOptions) -> SshKeyPair:
        """The first SSH host key of a host, which is deleted after the host.

        Args:
            host: the host.
            opts: the options of the resource.
        """
        return SshKeyPair(f"{host.name}-host-key", opts, (self.fleet, host.name))

    def error(self, host: HostPlan, key: str | None, fault: FleetError) -> FleetError:
        """An error in the placement of a host's pool, with its line in the fleet's file."""
        pool = ("gateway",) if host.kind == "gateway" else ("pools", host.pool)
        location = (*pool, "placement", *([key] if key else []))
        return self.document.error(location, fault.message, fault.hint, fault.code)


@dataclass(frozen=True)
class HostRecord:
    """One host as in ``stack.json``.

    Attributes:
        model_volume: what the cloud calls its disk for models, as :mod:`vllm_fleet.host.model_disk` reads it; None for
            a host without one.
    """

    address: pulumi.Input[str]
    id: pulumi.Input[str]
    user: pulumi.Input[str]
    ssh_host_key: pulumi.Input[str]
    zone: pulumi.Input[str]
    private_address: pulumi.Input[str] | None = None
    model_volume: pulumi.Input[str] | None = None

    def inputs(self) -> dict[str, pulumi.Input[str]]:
        """The record as a mapping, which may contain outputs."""
        return {
            "address": self.address,
            **({"private_address": self.private_address} if self.private_address is not None else {}),
            "id": self.id,
            "user": self.user,
            "ssh_host_key": self.ssh_host_key,
            "zone": self.zone,
            **({"model_volume": self.model_volume} if self.model_volume is not None else {}),
        }


class CloudComponent(pulumi.ComponentResource):
    """Base class: a component that creates the hosts of one cloud.

    Attributes:
        hosts: host name -> its record; a subclass fills it.
        blocks: pool -> the capacity block that this run bought for it, as ``stack.json`` has it.
    """

    hosts: Mapping[str, HostRecord]
    blocks: Mapping[str, pulumi.Input[Mapping[str, str]]] = {}

    def __init__(self, kind: str, name: str, opts: pulumi.ResourceOptions | None) -> None:
        super().__init__(f"fleet:infra:{kind}", name, None, opts)

    def register_hosts(self) -> None:
        """Ends the component; its outputs are the addresses of its hosts."""
        self.register_outputs({"hosts": {name: record.address for name, record in self.hosts.items()}})

    def far_gateways(self, args: CloudArgs, hosts: Iterable[HostPlan]) -> dict[str, pulumi.Input[str]]:
        """Name -> address of the gateways in other networks, joined with this one, that may connect to its hosts.

        Args:
            args: the cloud's part of the plan; its gateways exist already, or are in this network.
            hosts: the hosts of this network.
        """
        if not args.access.joined_networks or any(host.kind == "gateway" for host in hosts):
            return {}
        return {**args.gateways, **gateway_addresses(args.hosts, self.hosts)}


def gateway_addresses(hosts: Iterable[HostPlan], made: Mapping[str, HostRecord]) -> dict[str, pulumi.Input[str]]:
    """Name -> private address of the gateways among hosts."""
    addresses: dict[str, pulumi.Input[str]] = {}
    for host in hosts:
        record = made.get(host.name)
        if record:
            inside = record.address if record.private_address is None else record.private_address
        else:
            inside = host.static.address if host.static else ""
        if host.kind == "gateway" and inside != "":
            addresses[host.name] = inside
    return addresses


def inventory(
    plan: Plan, hosts: Mapping[str, HostRecord], blocks: Mapping[str, pulumi.Input[Mapping[str, str]]]
) -> pulumi.Output[dict[str, Any]]:
    """The content of ``stack.json``, once all addresses are known.

    Args:
        plan: the fleet.
        hosts: its hosts by name.
        blocks: pool -> the capacity block that was bought for it.
    """
    networks = standing.networks(plan)
    places = {host.name: {"network": name_of(host)} for host in plan.hosts if host.rented}
    records: dict[str, dict[str, Any]] = {
        name: {**record.inputs(), **places.get(name, {})} for name, record in hosts.items()
    }
    # One output for all values: one for each, as in a nested mapping, is slow at 1000 hosts.
    open_ = [
        (name, key, value)
        for name, record in records.items()
        for key, value in record.items()
        if isinstance(value, pulumi.Output)
    ]

    def fill(values: Sequence[Any]) -> dict[str, Any]:
        known = {name: dict(record) for name, record in records.items()}
        for (name, key, _), value in zip(open_, values[: len(open_)], strict=True):
            known[name][key] = value
        bought = dict(zip(blocks, values[len(open_) :], strict=True))
        more = {"networks": networks, "blocks": bought}
        return {"version": 1, "fleet": plan.fleet, "hosts": known, **{key: what for key, what in more.items() if what}}

    return pulumi.Output.all(*(value for _, _, value in open_), *blocks.values()).apply(fill)
