"""Oracle Cloud: a network in each region and compartment, hosts in its availability domains."""

from __future__ import annotations

import base64
from typing import Any

import pulumi

from infra.cloud_init import user_data
from infra.hosts import SERVICE_PORTS, CloudArgs, CloudComponent, HostRecord, has_private, needs_nat, placed, rented
from infra.keys import SshKeyPair
from infra.sdk import oci
from vllm_fleet.cloud_schema import OciPlacement
from vllm_fleet.clouds import Rented
from vllm_fleet.plan import HostPlan

_NETWORK = "10.60.0.0/16"
#: Hosts with and without a public address, which need different routes.
_OUTER, _INNER = "10.60.0.0/17", "10.60.128.0/17"
_EVERYWHERE = "0.0.0.0/0"
_TCP = "6"


class OciCloud(CloudComponent):
    """One provider and one network a region and compartment; credentials are those of the OCI SDK."""

    def __init__(self, name: str, args: CloudArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("OciCloud", name, opts)
        self.hosts = {}
        places = dict.fromkeys(_place(host) for host in args.hosts)
        several = len({compartment for _, compartment in places}) > 1
        for place in places:
            # The end of a compartment's id is what tells it from others.
            suffix = f"{place[0]}-{place[1][-6:]}" if several else place[0]
            region = _Region(f"{args.fleet}-{suffix}", args, place, self)
            made = {host.name: region.host(host) for host in args.hosts if _place(host) == place}
            self.hosts = {**self.hosts, **made}
        self.register_outputs({"hosts": {host: record.address for host, record in self.hosts.items()}})


def _place(host: HostPlan) -> tuple[str, str]:
    placement = placed(host, OciPlacement)
    return placement.region, placement.compartment


class _Region:
    """The network of one region and compartment, and the hosts in it."""

    def __init__(self, name: str, args: CloudArgs, place: tuple[str, str], parent: pulumi.Resource) -> None:
        self._name, self._args, self._compartment = name, args, place[1]
        self._parent = parent
        self._provider = oci.Provider(name, region=place[0], opts=pulumi.ResourceOptions(parent=parent))
        self._mine = pulumi.ResourceOptions(parent=parent, provider=self._provider)
        self._common: dict[str, Any] = {
            "compartment_id": place[1],
            "freeform_tags": {"fleet": args.fleet, "managed-by": "vllm-fleet"},
        }
        vcn = oci.core.Vcn(name, cidr_blocks=[_NETWORK], display_name=name, **self._common, opts=self._mine)
        hosts = [host for host in args.hosts if _place(host) == place]
        closed = self._closed(vcn)
        way_out = oci.core.InternetGateway(name, vcn_id=vcn.id, **self._common, opts=self._mine).id
        self._outer = self._subnet(name, vcn, closed, _OUTER, way_out)
        self._inside = has_private(hosts)
        if self._inside:
            nat = None
            if needs_nat(hosts):
                nat = oci.core.NatGateway(name, vcn_id=vcn.id, display_name=name, **self._common, opts=self._mine).id
            self._inner = self._subnet(f"{name}-inner", vcn, closed, _INNER, nat)
        self._groups = {
            kind: oci.core.NetworkSecurityGroup(
                f"{name}-{kind}", vcn_id=vcn.id, display_name=f"{name}-{kind}", **self._common, opts=self._mine
            ).id
            for kind in ("serving", "gateway")
        }
        self._rules()

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
    ) -> pulumi.Output[str]:
        table = oci.core.RouteTable(
            name,
            vcn_id=vcn.id,
            route_rules=[{"network_entity_id": way_out, "destination": _EVERYWHERE}] if way_out is not None else [],
            **self._common,
            opts=self._mine,
        )
        return oci.core.Subnet(
            name,
            vcn_id=vcn.id,
            cidr_block=block,
            route_table_id=table.id,
            security_list_ids=[closed],
            prohibit_public_ip_on_vnic=block == _INNER,
            display_name=name,
            **self._common,
            opts=self._mine,
        ).id

    def _rules(self) -> None:
        for kind in self._groups:
            for network in self._args.access.ssh_from:
                self._allow(kind, "ssh", (22, 22), network)
        for port in self._args.ports:
            for network in self._args.access.api_from:
                self._allow("gateway", "api", (port, port), network)
        self._allow("serving", "vllm", SERVICE_PORTS, None)
        if self._inside:
            self._allow("serving", "ssh", (22, 22), None)

    def _allow(self, kind: str, what: str, ports: tuple[int, int], network: str | None) -> None:
        """Lets TCP in from a network, or from the gateways where none is given."""
        suffix = f"-{network.replace('/', '-').replace(':', '.')}" if network else ""
        source: pulumi.Input[str] = network if network else self._groups["gateway"]
        oci.core.NetworkSecurityGroupSecurityRule(
            f"{self._name}-{kind}-{what}{suffix}",
            network_security_group_id=self._groups[kind],
            direction="INGRESS",
            protocol=_TCP,
            source=source,
            source_type="CIDR_BLOCK" if network else "NETWORK_SECURITY_GROUP",
            tcp_options={"destination_port_range": {"min": ports[0], "max": ports[1]}},
            opts=self._mine,
        )

    def host(self, host: HostPlan) -> HostRecord:
        """Makes one host."""
        where, placement = rented(host), placed(host, OciPlacement)
        zone = self._args.zones.choose(host.name, placement.all_zones)
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
                    hooks=self._args.zones.hooks(host.name, zone),
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
