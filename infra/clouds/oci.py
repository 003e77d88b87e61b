"""Oracle Cloud: a network in each region and compartment, hosts in its availability domains."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import pulumi

from infra.cloud_init import user_data
from infra.hosts import (
    SERVICE_PORTS,
    CloudArgs,
    CloudComponent,
    HostRecord,
    MirrorRule,
    has_private,
    needs_nat,
    placed,
    range_of,
    rented,
)
from infra.keys import SshKeyPair
from infra.sdk import oci
from vllm_fleet.catalogue.rental import Rented
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.private_networks import PARTS, part
from vllm_fleet.schema.cloud import OciPlacement

_EVERYWHERE = "0.0.0.0/0"
_TCP = "6"


class OciCloud(CloudComponent):
    """One provider and one network a region and compartment; credentials are those of the OCI SDK."""

    def __init__(self, name: str, args: CloudArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("OciCloud", name, opts)
        self.hosts = {}
        several = len({placed(host, OciPlacement).compartment for host in args.hosts}) > 1
        for hosts in args.networks:
            where = placed(hosts[0], OciPlacement)
            # The end of a compartment's id is what tells it from others.
            suffix = f"{where.region}-{where.compartment[-6:]}" if several else where.region
            made = _Region(f"{args.fleet}-{suffix}", args, hosts, self.far_gateways(args, hosts), self)
            self.hosts = {**self.hosts, **{host.name: made.host(host) for host in hosts}}
        self.register_outputs({"hosts": {host: record.address for host, record in self.hosts.items()}})


class _Region:
    """The network of one region and compartment, and the hosts in it."""

    def __init__(
        self,
        name: str,
        args: CloudArgs,
        hosts: tuple[HostPlan, ...],
        far_gateways: Mapping[str, pulumi.Input[str]],
        parent: pulumi.Resource,
    ) -> None:
        where = placed(hosts[0], OciPlacement)
        self._name, self._args, self._compartment = name, args, where.compartment
        self._parent = parent
        self._provider = oci.Provider(name, region=where.region, opts=pulumi.ResourceOptions(parent=parent))
        self._mine = pulumi.ResourceOptions(parent=parent, provider=self._provider)
        self._common: dict[str, Any] = {
            "compartment_id": where.compartment,
            "freeform_tags": {"fleet": args.fleet, "managed-by": "vllm-fleet"},
        }
        block = range_of(hosts)
        # Hosts with and without a public address need different routes.
        outer, inner = (str(part(block, PARTS["oci"], index)) for index in range(2))
        vcn = oci.core.Vcn(name, cidr_blocks=[str(block)], display_name=name, **self._common, opts=self._mine)
        closed = self._closed(vcn)
        way_out = oci.core.InternetGateway(name, vcn_id=vcn.id, **self._common, opts=self._mine).id
        self._outer = self._subnet(name, vcn, closed, outer, way_out, public=True)
        self._inside = has_private(hosts)
        if self._inside:
            nat = None
            if needs_nat(hosts):
                nat = oci.core.NatGateway(name, vcn_id=vcn.id, display_name=name, **self._common, opts=self._mine).id
            self._inner = self._subnet(f"{name}-inner", vcn, closed, inner, nat, public=False)
        self._groups = {
            kind: oci.core.NetworkSecurityGroup(
                f"{name}-{kind}", vcn_id=vcn.id, display_name=f"{name}-{kind}", **self._common, opts=self._mine
            ).id
            for kind in ("serving", "gateway")
        }
        self._rules(far_gateways, args.mirror_among(hosts))

    def _closed(self, vcn: oci.core.Vcn) -> pulumi.Output[str]:
        # A network's own list of rules opens SSH to everybody; this one lets nothing in.
        return oci.core.SecurityList(
            self._name,
            vcn_id=vcn.id,
            display_name=f"{self._name}-closed",
            egress_security_rules=[{"protocol": "all", "destination": _EVERYWHERE}],
            **self._common,
            opts=self._mine,
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
        # A table holds all of its routes: where networks are joined, those that their owner adds must stay.
        kept = pulumi.ResourceOptions(ignore_changes=["routeRules"] if self._args.access.joined_networks else [])
        table = oci.core.RouteTable(
            name,
            vcn_id=vcn.id,
            route_rules=[{"network_entity_id": way_out, "destination": _EVERYWHERE}] if way_out is not None else [],
            **self._common,
            opts=pulumi.ResourceOptions.merge(self._mine, kept),
        )
        return oci.core.Subnet(
            name,
            vcn_id=vcn.id,
            cidr_block=block,
            route_table_id=table.id,
            security_list_ids=[closed],
            prohibit_public_ip_on_vnic=not public,
            display_name=name,
            **self._common,
            opts=self._mine,
        ).id

    def _rules(self, far_gateways: Mapping[str, pulumi.Input[str]], mirror: MirrorRule | None) -> None:
        for kind in self._groups:
            for network in self._args.access.ssh_from:
                self._allow(kind, "ssh", (22, 22), network)
        for port in self._args.ports:
            for network in self._args.access.api_from:
                self._allow("gateway", "api", (port, port), network)
        if mirror:
            for port in mirror.ports:
                for origin, group in self._groups.items():
                    source = (group, "NETWORK_SECURITY_GROUP")
                    self._ingress(mirror.kind, f"mirror-{port}-{origin}", (port, port), *source)
                for network in mirror.far:
                    self._allow(mirror.kind, f"mirror-{port}", (port, port), network)
        for what, ports in (("vllm", SERVICE_PORTS), *([("ssh", (22, 22))] if self._inside else [])):
            self._ingress("serving", what, ports, self._groups["gateway"], "NETWORK_SECURITY_GROUP")
            for name, address in far_gateways.items():
                self._ingress("serving", f"{what}-{name}", ports, pulumi.Output.concat(address, "/32"))

    def _allow(self, kind: str, what: str, ports: tuple[int, int], network: str) -> None:
        """Lets TCP in from a network."""
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
            network_security_group_id=self._groups[kind],
            direction="INGRESS",
            protocol=_TCP,
            source=source,
            source_type=source_type,
            tcp_options={"destination_port_range": {"min": ports[0], "max": ports[1]}},
            opts=self._mine,
        )

    def host(self, host: HostPlan) -> HostRecord:
        """Makes one host."""
        where, placement = rented(host), placed(host, OciPlacement)
        zone = self._args.zones.choose(host)
        key = SshKeyPair(f"{host.name}-host-key", pulumi.ResourceOptions(parent=self._parent))
        text = user_data(host.user, self._args.authorised_keys, key)
        flexible: dict[str, Any] = {}
        if where.shape.endswith(".Flex"):
            flexible["shape_config"] = {"ocpus": 4, "memory_in_gbs": 32}
        instance = oci.core.Instance(
            host.name,
            display_name=f"{self._args.fleet}-{host.name}",
            availability_domain=zone,
            shape=where.shape,
            source_details={
                "source_type": "image",
                "source_id": self._image(where),
                "boot_volume_size_in_gbs": str(where.placement.disk_gib),
            },
            create_vnic_details={
                "subnet_id": self._outer if placement.public_address else self._inner,
                "nsg_ids": [self._groups[host.kind]],
                "assign_public_ip": str(placement.public_address).lower(),
            },
            metadata={"user_data": text.apply(lambda plain: base64.b64encode(plain.encode()).decode())},
            instance_options={"are_legacy_imds_endpoints_disabled": True},
            capacity_reservation_id=placement.capacity.id,
            **flexible,
            **self._common,
            opts=pulumi.ResourceOptions.merge(
                self._mine,
                pulumi.ResourceOptions(
                    protect=host.name not in self._args.unprotected,
                    ignore_changes=["metadata", "availabilityDomain"]
                    + ([] if placement.image else ["sourceDetails.sourceId"]),
                    hooks=self._args.zones.hooks(host, zone),
                ),
            ),
        )
        address = instance.public_ip if placement.public_address else instance.private_ip
        zone_now = instance.availability_domain
        return HostRecord(address, instance.id, host.user, key.public_key, zone_now, instance.private_ip)

    def _image(self, where: Rented) -> pulumi.Input[str]:
        """The fleet's own image; for a gateway, the newest of the operating system that the table names."""
        if where.placement.image not in (None, "latest"):
            return str(where.placement.image)
        system, version = where.table.images[where.image_kind].split("/")
        found = oci.core.get_images_output(
            compartment_id=self._compartment,
            operating_system=system,
            operating_system_version=version,
            shape=where.shape,
            sort_by="TIMECREATED",
            sort_order="DESC",
            opts=pulumi.InvokeOptions(parent=self._parent, provider=self._provider),
        )
        return found.images.apply(lambda images: str(images[0].id))
