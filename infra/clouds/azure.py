"""Microsoft Azure: a resource group with a network in each region, and virtual machines in it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import pulumi

from infra.cloud_init import user_data
from infra.hosts import (
    SERVICE_PORTS,
    CloudArgs,
    CloudComponent,
    HostRecord,
    has_private,
    needs_nat,
    placed,
    range_of,
    rented,
)
from infra.keys import SshKeyPair
from infra.sdk import azure
from vllm_fleet.catalogue.rental import Rented
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import AzurePlacement


class AzureCloud(CloudComponent):
    """One provider and one resource group a region; subscription and credentials are those of the Azure CLI."""

    def __init__(self, name: str, args: CloudArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("AzureCloud", name, opts)
        self.hosts = {}
        for hosts in args.networks:
            made = _Region(args, hosts, self.far_gateways(args, hosts), self)
            self.hosts = {**self.hosts, **{host.name: made.host(host) for host in hosts}}
        self.register_outputs({"hosts": {host: record.address for host, record in self.hosts.items()}})


class _Region:
    """The resource group and network of one region, and the hosts in it."""

    def __init__(
        self,
        args: CloudArgs,
        hosts: tuple[HostPlan, ...],
        far_gateways: Mapping[str, pulumi.Input[str]],
        parent: pulumi.Resource,
    ) -> None:
        self._args, self._parent, self._inside = args, parent, has_private(hosts)
        self._far = list(far_gateways.values())
        self._mirror = args.mirror_among(hosts)
        region = rented(hosts[0]).placement.region
        name = f"{args.fleet}-{region}"
        block = str(range_of(hosts))
        provider = azure.Provider(name, location=region, opts=pulumi.ResourceOptions(parent=parent))
        self._mine = pulumi.ResourceOptions(parent=parent, provider=provider)
        tags = {"fleet": args.fleet, "managed-by": "vllm-fleet"}
        group = azure.resources.ResourceGroup(
            name, resource_group_name=name, location=region, tags=tags, opts=self._mine
        )
        self._common: dict[str, Any] = {"resource_group_name": group.name, "location": region, "tags": tags}
        network = azure.network.VirtualNetwork(
            name,
            virtual_network_name=name,
            address_space={"address_prefixes": [block]},
            **self._common,
            opts=self._mine,
        )
        self._subnet = azure.network.Subnet(
            name,
            subnet_name="hosts",
            resource_group_name=group.name,
            virtual_network_name=network.name,
            address_prefix=block,
            nat_gateway={"id": self._nat(f"{name}-nat")} if needs_nat(hosts) else None,
            # Nothing reaches out but by that NAT and by addresses that the fleet asks for.
            default_outbound_access=False,
            opts=self._mine,
        ).id
        self._members = {
            kind: azure.network.ApplicationSecurityGroup(
                f"{name}-{kind}",
                application_security_group_name=f"{name}-{kind}",
                **self._common,
                opts=self._mine,
            ).id
            for kind in ("serving", "gateway")
        }
        self._groups = {kind: self._rules(f"{name}-{kind}", kind) for kind in self._members}

    def _nat(self, name: str) -> pulumi.Output[str]:
        """The way out of hosts without a public address."""
        address = azure.network.PublicIPAddress(
            name,
            public_ip_address_name=name,
            sku={"name": "Standard"},
            public_ip_allocation_method="Static",
            **self._common,
            opts=self._mine,
        )
        return azure.network.NatGateway(
            name,
            nat_gateway_name=name,
            sku={"name": "Standard"},
            public_ip_addresses=[{"id": address.id}],
            **self._common,
            opts=self._mine,
        ).id

    def _rules(self, name: str, kind: str) -> pulumi.Output[str]:
        access = self._args.access
        rules: list[Any] = [_allow("ssh", 100, "22", access.ssh_from)]
        if kind == "gateway" and access.api_from:
            rules += [_allow(f"api-{port}", 200 + port % 100, str(port), access.api_from) for port in self._args.ports]
        if kind == "serving":
            ports = f"{SERVICE_PORTS[0]}-{SERVICE_PORTS[1]}"
            origin = {"source_application_security_groups": [{"id": self._members["gateway"]}]}
            for number, (what, where) in enumerate(
                [("vllm", ports), *([("ssh-inside", "22")] if self._inside else [])]
            ):
                rules.append({**_allow(what, 300 + number, where, []), **origin})
                # A rule names groups or addresses, not both.
                if self._far:
                    rules.append(_allow(f"{what}-far", 310 + number, where, self._far))
        if self._mirror and self._mirror.kind == kind:
            everyone = {"source_application_security_groups": [{"id": each} for each in self._members.values()]}
            for number, port in enumerate(self._mirror.ports):
                rules.append({**_allow(f"mirror-{port}", 320 + number, str(port), []), **everyone})
                if self._mirror.far:
                    rules.append(_allow(f"mirror-{port}-far", 330 + number, str(port), self._mirror.far))
        # Azure's own last rules let everything of the virtual network in.
        rules.append({**_allow("rest", 4096, "*", ["*"]), "access": "Deny", "protocol": "*"})
        return azure.network.NetworkSecurityGroup(
            name, network_security_group_name=name, security_rules=rules, **self._common, opts=self._mine
        ).id

    def host(self, host: HostPlan) -> HostRecord:
        """Makes one host."""
        where, placement = rented(host), placed(host, AzurePlacement)
        zone = self._args.zones.choose(host) if placement.all_zones else None
        key = SshKeyPair(f"{host.name}-host-key", pulumi.ResourceOptions(parent=self._parent))
        zoned: dict[str, Any] = {"zones": [zone]} if zone else {}
        protect = host.name not in self._args.unprotected
        kept = pulumi.ResourceOptions(ignore_changes=["zones"], protect=protect)
        public = None
        if placement.public_address:
            public = azure.network.PublicIPAddress(
                host.name,
                public_ip_address_name=host.name,
                sku={"name": "Standard"},
                public_ip_allocation_method="Static",
                **zoned,
                **self._common,
                opts=pulumi.ResourceOptions.merge(self._mine, kept),
            )
        card = self._card(host, public)
        cards: Any = {"network_interfaces": [{"id": card.id, "primary": True}]}
        machine = azure.compute.VirtualMachine(
            host.name,
            vm_name=host.name,
            hardware_profile={"vm_size": where.shape},
            network_profile=cards,
            os_profile=self._account(host, key),
            storage_profile=_disks(where),
            security_profile={"encryption_at_host": True},
            **zoned,
            **_capacity(placement),
            **self._common,
            opts=pulumi.ResourceOptions.merge(
                self._mine,
                pulumi.ResourceOptions(
                    protect=protect,
                    ignore_changes=[
                        "zones",
                        "osProfile",
                        *([] if placement.image else ["storageProfile.imageReference"]),
                    ],
                    hooks=self._args.zones.hooks(host, zone or placement.region),
                ),
            ),
        )
        private = card.ip_configurations.apply(lambda found: str(found[0].private_ip_address) if found else "")
        address = public.ip_address.apply(str) if public else private
        return HostRecord(address, machine.id, host.user, key.public_key, zone or placement.region, private)

    def _card(self, host: HostPlan, public: azure.network.PublicIPAddress | None) -> azure.network.NetworkInterface:
        address: Any = {
            "name": "main",
            "subnet": {"id": self._subnet},
            "application_security_groups": [{"id": self._members[host.kind]}],
        }
        if public:
            address["public_ip_address"] = {"id": public.id}
        return azure.network.NetworkInterface(
            host.name,
            network_interface_name=host.name,
            ip_configurations=[address],
            network_security_group={"id": self._groups[host.kind]},
            **self._common,
            opts=self._mine,
        )

    def _account(self, host: HostPlan, key: SshKeyPair) -> Any:
        keys = pulumi.Output.from_input(self._args.authorised_keys)
        path = f"/home/{host.user}/.ssh/authorized_keys"
        text = user_data(host.user, self._args.authorised_keys, key)
        return {
            "computer_name": host.name,
            "admin_username": host.user,
            "custom_data": text.apply(lambda plain: base64.b64encode(plain.encode()).decode()),
            "linux_configuration": {
                "disable_password_authentication": True,
                "ssh": {
                    "public_keys": keys.apply(
                        lambda lines: [{"key_data": line, "path": path} for line in lines.splitlines()]
                    )
                },
            },
        }


def _allow(name: str, priority: int, ports: str, networks: Sequence[pulumi.Input[str]]) -> Any:
    rule: dict[str, Any] = {
        "name": name,
        "priority": priority,
        "direction": "Inbound",
        "access": "Allow",
        "protocol": "Tcp",
        "source_port_range": "*",
        "destination_address_prefix": "*",
        "destination_port_range": ports,
    }
    if networks == ["*"]:
        return {**rule, "source_address_prefix": "*"}
    return {**rule, "source_address_prefixes": networks} if networks else rule


def _disks(where: Rented) -> Any:
    image = where.placement.image
    if image and image != "latest":
        reference = {"id": image}
    else:
        publisher, offer, sku = where.table.images[where.image_kind].split(":")
        reference = {"publisher": publisher, "offer": offer, "sku": sku, "version": "latest"}
    models = {
        "create_option": "Empty",
        "lun": 0,
        "disk_size_gb": where.placement.model_disk_gib,
        "managed_disk": {"storage_account_type": "Premium_LRS"},
        "delete_option": "Detach",
    }
    return {
        "image_reference": reference,
        "os_disk": {
            "create_option": "FromImage",
            "disk_size_gb": where.placement.disk_gib,
            "managed_disk": {"storage_account_type": "Premium_LRS"},
            "delete_option": "Delete",
        },
        "data_disks": [models] if where.placement.model_disk_gib else [],
    }


def _capacity(placement: AzurePlacement) -> dict[str, Any]:
    """What a way to get capacity adds to a machine. A maximum price of -1 is the price on demand."""
    if placement.capacity.kind == "spot":
        return {"priority": "Spot", "eviction_policy": "Deallocate", "billing_profile": {"max_price": -1}}
    if placement.capacity.kind == "reservation":
        return {"capacity_reservation": {"capacity_reservation_group": {"id": placement.capacity.id}}}
    return {}
