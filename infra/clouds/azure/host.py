"""One host of Azure: a virtual machine with its host key, its interface, its address and its disks."""

from __future__ import annotations

from typing import Any

import pulumi

from infra.cloud_init import encoded_user_data
from infra.clouds.azure.capacity import capacity
from infra.clouds.azure.images import image_reference
from infra.clouds.azure.network import AzureNetwork
from infra.hosts import CloudArgs, HostRecord, placed, rented
from infra.keys import SshKeyPair
from infra.sdk import azure
from vllm_fleet.catalogue.rental import Rented
from vllm_fleet.fleet import disk_speed, host_changes
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import AzurePlacement

#: The LUN of the disk for models; the guest finds the disk by it.
_MODELS_LUN = 0

#: Ignored changes of a host that exists: they would stop or replace it, or Azure refuses them while it runs.
_KEPT = ["zones", "osProfile", "evictionPolicy", "securityProfile"]


class AzureHost:
    """A virtual machine. No component of Pulumi, for the reason that :class:`AzureNetwork` gives.

    Attributes:
        record: its entry in ``stack.json``.
    """

    def __init__(self, host: HostPlan, args: CloudArgs, network: AzureNetwork, opts: pulumi.ResourceOptions) -> None:
        where, placement = rented(host), placed(host, AzurePlacement)
        zone = args.zones.choose(host) if placement.all_zones else None
        key = args.host_key(host, pulumi.ResourceOptions(parent=opts.parent))
        zoned: dict[str, Any] = {"zones": [zone]} if zone else {}
        kept = pulumi.ResourceOptions(ignore_changes=["zones"], protect=args.protects(host))
        public = None
        if placement.public_address:
            public = azure.network.PublicIPAddress(
                host.name,
                public_ip_address_name=host.name,
                sku={"name": "Standard"},
                public_ip_allocation_method="Static",
                **zoned,
                **network.common,
                opts=pulumi.ResourceOptions.merge(opts, kept),
            )
        card = _card(host, public, network, opts)
        cards: Any = {"network_interfaces": [{"id": card.id, "primary": True}]}
        machine = azure.compute.VirtualMachine(
            host.name,
            vm_name=host.name,
            hardware_profile={"vm_size": where.shape},
            network_profile=cards,
            os_profile=_account(host, args, key),
            storage_profile=_disks(where),
            **_security(placement),
            identity=_identity(placement),
            **zoned,
            **capacity(placement),
            **network.common,
            opts=pulumi.ResourceOptions.merge(
                pulumi.ResourceOptions.merge(opts, _released(host, args)),
                args.host_options(host, zone or placement.region, _KEPT, image="storageProfile.imageReference"),
            ),
        )
        private = card.ip_configurations.apply(
            lambda configurations: str(configurations[0].private_ip_address) if configurations else ""
        )
        address = public.ip_address.apply(str) if public else private
        volume = f"lun{_MODELS_LUN}" if placement.model_disk_gib else None
        self.record = HostRecord(
            address, machine.id, host.user, key.public_key, zone or placement.region, private, volume
        )


def _released(host: HostPlan, args: CloudArgs) -> pulumi.ResourceOptions:
    """Replaces a host of this run where Azure would refuse the change, which no preview shows."""
    if args.protects(host):
        return pulumi.ResourceOptions()
    refused = host_changes.inputs_with("azure-native:compute:VirtualMachine", "refused")
    return pulumi.ResourceOptions(replace_on_changes=refused, delete_before_replace=True)


def _security(placement: AzurePlacement) -> dict[str, Any]:
    """The encryption of the host's own disks. A subscription without the feature refuses even ``false``."""
    return {"security_profile": {"encryption_at_host": True}} if placement.encryption_at_host else {}


def _card(
    host: HostPlan,
    public: azure.network.PublicIPAddress | None,
    network: AzureNetwork,
    opts: pulumi.ResourceOptions,
) -> azure.network.NetworkInterface:
    address: Any = {
        "name": "main",
        "subnet": {"id": network.subnet(host)},
    }
    if network.members:
        address["application_security_groups"] = [{"id": network.members[host.kind]}]
    if public:
        address["public_ip_address"] = {"id": public.id}
    return azure.network.NetworkInterface(
        host.name,
        network_interface_name=host.name,
        ip_configurations=[address],
        network_security_group={"id": network.group(host)},
        **network.common,
        opts=opts,
    )


def _identity(placement: AzurePlacement) -> Any:
    if placement.managed_identity is None:
        return None
    return {"type": "UserAssigned", "user_assigned_identities": [placement.managed_identity]}


def _account(host: HostPlan, args: CloudArgs, key: SshKeyPair) -> Any:
    keys = pulumi.Output.from_input(args.authorised_keys)
    path = f"/home/{host.user}/.ssh/authorized_keys"
    return {
        "computer_name": host.name,
        "admin_username": host.user,
        "custom_data": encoded_user_data(host.user, args.authorised_keys, key),
        "linux_configuration": {
            "disable_password_authentication": True,
            "ssh": {
                "public_keys": keys.apply(
                    lambda lines: [{"key_data": line, "path": path} for line in lines.splitlines()]
                )
            },
        },
    }


def _disks(where: Rented) -> Any:
    models = {
        "create_option": "Empty",
        "lun": _MODELS_LUN,
        "disk_size_gb": where.placement.model_disk_gib,
        "managed_disk": {"storage_account_type": disk_speed.type_name(where, "models")},
        # It is no resource of the stack: detached, it would stay, and cost money, after its host. The weights on it are
        # a copy.
        "delete_option": "Delete",
    }
    return {
        "image_reference": image_reference(where),
        "os_disk": {
            "create_option": "FromImage",
            "disk_size_gb": where.placement.disk_gib,
            "managed_disk": {"storage_account_type": disk_speed.type_name(where, "root")},
            "delete_option": "Delete",
        },
        "data_disks": [models] if where.placement.model_disk_gib else [],
    }
