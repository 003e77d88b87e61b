"""The network of a region and compartment: SSH and the API from the fleet's ranges, vLLM from the gateways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi

from infra.existing import Lookup
from infra.hosts import (
    EVERYWHERE,
    SERVICE_PORTS,
    CloudArgs,
    MirrorRule,
    has_private,
    needs_nat,
    placed,
    range_of,
)
from infra.sdk import oci
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.private_networks import PARTS, part
from vllm_fleet.schema.cloud import OciPlacement

_TCP = "6"


class OciNetwork:
    """VCN, subnets with their routes, and security groups; of a VCN that exists, only what it is not given.

    No component of Pulumi: in the stacks that exist its resources are children of the cloud's component, and another
    parent would be another URN.

    Attributes:
        common: arguments that every resource takes: its compartment and its tags.
        outer: the id of the public subnet; None in a VCN of the account.
        inner: the id of the private subnet; None where no host needs it.
        groups: kind of host -> the id of its security group; none where the account's own are given.
    """

    def __init__(
        self,
        name: str,
        args: CloudArgs,
        hosts: tuple[HostPlan, ...],
        far_gateways: Mapping[str, pulumi.Input[str]],
        opts: pulumi.ResourceOptions,
    ) -> None:
        self._name, self._args, self._opts = name, args, opts
        self.common: dict[str, Any] = {
            "compartment_id": placed(hosts[0], OciPlacement).compartment,
            "freeform_tags": args.tags,
        }
        self.outer: pulumi.Output[str] | None = None
        self.inner: pulumi.Output[str] | None = None
        self.groups: dict[str, pulumi.Output[str]] = {}
        existing = placed(hosts[0], OciPlacement).existing
        vcn: pulumi.Input[str]
        if existing:
            _look_up(hosts, Lookup(args, opts))
            vcn = existing.vcn
        else:
            vcn = self._own(hosts)
        if existing and existing.has_own_rules:
            return
        self.groups = {
            kind: oci.core.NetworkSecurityGroup(
                f"{name}-{kind}", vcn_id=vcn, display_name=f"{name}-{kind}", **self.common, opts=self._opts
            ).id
            for kind in ("serving", "gateway")
        }
        self._rules(args.mirror_among(hosts))
        for port in args.peer_ports_among(hosts):
            source = (self.groups["gateway"], "NETWORK_SECURITY_GROUP")
            self._ingress("gateway", f"peers-{port}", (port, port), *source)
        self._from_gateways("vllm", SERVICE_PORTS, far_gateways)
        if has_private(hosts):
            self._from_gateways("ssh", (22, 22), far_gateways)

    def subnet(self, host: HostPlan) -> pulumi.Input[str] | None:
        """The id of a host's subnet."""
        placement = placed(host, OciPlacement)
        if placement.existing:
            return placement.existing.subnet
        return self.outer if placement.public_address else self.inner

    def groups_of(self, host: HostPlan) -> list[pulumi.Input[str]]:
        """The ids of a host's security groups."""
        existing = placed(host, OciPlacement).existing
        own = existing.network_security_groups if existing else []
        return [*own] if own else [self.groups[host.kind]]

    def _own(self, hosts: tuple[HostPlan, ...]) -> pulumi.Output[str]:
        """Makes the VCN, its subnets and their routes."""
        name, block = self._name, range_of(hosts)
        # Public and private hosts need different routes.
        outer, inner = (str(part(block, PARTS["oci"], index)) for index in range(2))
        vcn = oci.core.Vcn(name, cidr_blocks=[str(block)], display_name=name, **self.common, opts=self._opts)
        closed = self._closed(vcn)
        way_out = oci.core.InternetGateway(name, vcn_id=vcn.id, **self.common, opts=self._opts).id
        self.outer = self._subnet(name, vcn, closed, outer, way_out, public=True)
        if has_private(hosts):
            nat = None
            if needs_nat(hosts):
                nat = oci.core.NatGateway(name, vcn_id=vcn.id, display_name=name, **self.common, opts=self._opts).id
            self.inner = self._subnet(f"{name}-inner", vcn, closed, inner, nat, public=False)
        return vcn.id

    def _closed(self, vcn: oci.core.Vcn) -> pulumi.Output[str]:
        # The default list of a VCN allows SSH from everywhere; this one allows nothing.
        return oci.core.SecurityList(
            self._name,
            vcn_id=vcn.id,
            display_name=f"{self._name}-closed",
            egress_security_rules=[{"protocol": "all", "destination": EVERYWHERE}],
            **self.common,
            opts=self._opts,
        ).id

    def _subnet(
        self,
        name: str,
        vcn: oci.core.Vcn,
        closed: pulumi.Output[str],
        block: str,
        way_out: pulumi.Output[str] | None,
        public: bool,
    ) -> pulumi.Output[str]:
        # A table holds all of its routes: those that the owner adds for joined networks must stay.
        kept = pulumi.ResourceOptions(ignore_changes=["routeRules"] if self._args.access.joined_networks else [])
        table = oci.core.RouteTable(
            name,
            vcn_id=vcn.id,
            route_rules=[{"network_entity_id": way_out, "destination": EVERYWHERE}] if way_out is not None else [],
            **self.common,
            opts=pulumi.ResourceOptions.merge(self._opts, kept),
        )
        return oci.core.Subnet(
            name,
            vcn_id=vcn.id,
            cidr_block=block,
            route_table_id=table.id,
            security_list_ids=[closed],
            prohibit_public_ip_on_vnic=not public,
            display_name=name,
            **self.common,
            opts=self._opts,
        ).id

    def _rules(self, mirror: MirrorRule | None) -> None:
        for kind in self.groups:
            for network in self._args.access.ssh_from:
                self._allow(kind, "ssh", (22, 22), network)
        for open_port in self._args.ports:
            for network in open_port.networks:
                self._allow("gateway", open_port.name, (open_port.port, open_port.port), network)
        if mirror:
            for port in mirror.ports:
                for origin, group in self.groups.items():
                    source = (group, "NETWORK_SECURITY_GROUP")
                    self._ingress(mirror.kind, f"mirror-{port}-{origin}", (port, port), *source)
                for network in mirror.far:
                    self._allow(mirror.kind, f"mirror-{port}", (port, port), network)

    def _from_gateways(self, what: str, ports: tuple[int, int], far: Mapping[str, pulumi.Input[str]]) -> None:
        """Allows TCP to serving hosts from the gateways: by group in this network, by address from another one."""
        self._ingress("serving", what, ports, self.groups["gateway"], "NETWORK_SECURITY_GROUP")
        for name, address in far.items():
            self._ingress("serving", f"{what}-{name}", ports, pulumi.Output.concat(address, "/32"))

    def _allow(self, kind: str, what: str, ports: tuple[int, int], network: str) -> None:
        """Allows TCP from a network."""
        self._ingress(kind, f"{what}-{network.replace('/', '-').replace(':', '.')}", ports, network)

    def _ingress(
        self,
        kind: str,
        what: str,
        ports: tuple[int, int],
        source: pulumi.Input[str],
        source_type: str = "CIDR_BLOCK",
    ) -> None:
        oci.core.NetworkSecurityGroupSecurityRule(
            f"{self._name}-{kind}-{what}",
            network_security_group_id=self.groups[kind],
            direction="INGRESS",
            protocol=_TCP,
            source=source,
            source_type=source_type,
            tcp_options={"destination_port_range": {"min": ports[0], "max": ports[1]}},
            opts=self._opts,
        )


def _look_up(hosts: tuple[HostPlan, ...], lookup: Lookup) -> None:
    """Compares the subnets and groups that the hosts are given with those of the tenancy.

    Raises:
        FleetError: one does not exist, or is in another network or availability domain than ``fleet.yml`` says.
    """
    for host in hosts:
        placement = placed(host, OciPlacement)
        existing = placement.existing
        if existing is None or not lookup.is_new(" ".join([existing.subnet, *placement.all_zones])):
            continue
        at = ("subnet",)
        subnet = lookup.ask(host, at, oci.core.get_subnet, subnet_id=existing.subnet)
        lookup.must(host, at, subnet.vcn_id, existing.vcn, "VCN")
        lookup.inside(host, at, subnet.cidr_block)
        for zone in placement.all_zones:
            # A regional subnet has no availability domain.
            lookup.must(host, at, subnet.availability_domain or zone, zone, "availability domain")
        if placement.public_address and subnet.prohibit_public_ip_on_vnic:
            raise lookup.error(host, at, "it forbids public addresses, and public_address is true")
        for id_ in existing.network_security_groups:
            at = ("network_security_groups",)
            group = lookup.ask(host, at, oci.core.get_network_security_group, network_security_group_id=id_)
            lookup.must(host, at, group.vcn_id, existing.vcn, "VCN")
