"""One host of AWS: an instance with its host key, its disk and, where the fleet wants one, its disk for models."""

from __future__ import annotations

from typing import Any

import pulumi

from infra.cloud_init import user_data
from infra.clouds.aws.capacity import Capacity
from infra.clouds.aws.images import AwsImages
from infra.clouds.aws.network import AwsNetwork
from infra.hosts import CloudArgs, HostRecord, placed, rented
from infra.keys import SshKeyPair
from infra.sdk import aws
from vllm_fleet.catalogue.rental import Rented
from vllm_fleet.fleet import disk_speed
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import AwsPlacement

#: Ignored changes of a host that exists: they would stop or replace it.
_KEPT = ["userData", "subnetId", "availabilityZone", "associatePublicIpAddress"]


class AwsHost(pulumi.ComponentResource):
    """An instance. It has no instance profile, because nothing on it uses the AWS API.

    Attributes:
        record: its entry in ``stack.json``.
    """

    record: HostRecord

    def __init__(
        self,
        host: HostPlan,
        args: CloudArgs,
        network: AwsNetwork,
        capacity: Capacity,
        images: AwsImages,
        opts: pulumi.ResourceOptions,
    ) -> None:
        super().__init__("fleet:infra:AwsHost", host.name, None, opts)
        self._host = host
        self._mine = pulumi.ResourceOptions(parent=self, provider=opts.provider)
        where = rented(host)
        zone = args.zones.choose(host)
        key = SshKeyPair(f"{host.name}-host-key", pulumi.ResourceOptions(parent=self))
        protect = args.protects(host)
        instance = aws.ec2.Instance(
            host.name,
            instance_type=where.shape,
            ami=images.image(where),
            user_data=user_data(host.user, args.authorised_keys, key),
            metadata_options={"http_tokens": "required", "http_put_response_hop_limit": 1, "http_endpoint": "enabled"},
            root_block_device=_boot_disk(where),
            tags=self._tags(),
            **self._interfaces(where, network, zone),
            **capacity.arguments(),
            opts=pulumi.ResourceOptions.merge(
                self._mine,
                args.host_options(host, zone, _KEPT, image="ami"),
            ),
        )
        volume = self._model_disk(instance, where, protect) if where.placement.model_disk_gib else None
        kept = pulumi.ResourceOptions(protect=protect, depends_on=[network.gateway])
        address = self._address(instance, pulumi.ResourceOptions.merge(self._mine, kept))
        self.record = HostRecord(
            address, instance.id, host.user, key.public_key, instance.availability_zone, instance.private_ip, volume
        )
        self.register_outputs({"address": address})

    def _tags(self) -> dict[str, str]:
        return {"Name": self._host.name, "host": self._host.name, "pool": self._host.pool}

    def _interfaces(self, where: Rented, network: AwsNetwork, zone: str) -> dict[str, Any]:
        """The network of the instance: one interface, or one for each card where the fleet wants the fabric."""
        groups = [network.groups[self._host.kind]]
        placement = placed(self._host, AwsPlacement)
        subnet = (network.subnets if placement.public_address else network.inner)[zone]
        if not (placement.fabric and where.fabric_cards):
            return {
                "subnet_id": subnet,
                "vpc_security_group_ids": groups,
                # Gateways have an address that stays; see _address.
                "associate_public_ip_address": placement.public_address and self._host.kind == "serving",
            }
        cards = [
            aws.ec2.NetworkInterface(
                f"{self._host.name}-card-{card}",
                subnet_id=subnet,
                security_groups=groups,
                interface_type="efa" if card == 0 else "efa-only",
                tags=self._tags(),
                opts=pulumi.ResourceOptions.merge(self._mine, pulumi.ResourceOptions(ignore_changes=["subnetId"])),
            )
            for card in range(where.fabric_cards)
        ]
        return {
            "network_interfaces": [
                {"network_interface_id": interface.id, "device_index": min(card, 1), "network_card_index": card}
                for card, interface in enumerate(cards)
            ]
        }

    def _address(self, instance: aws.ec2.Instance, opts: pulumi.ResourceOptions) -> pulumi.Output[str]:
        """The address for SSH.

        Gateways have an elastic address, which DNS names can point to. So do hosts with several interfaces: AWS gives
        them no dynamic one. Accounts have few elastic addresses, so other hosts get a dynamic one, which stays until
        they are stopped.
        """
        placement = placed(self._host, AwsPlacement)
        if not placement.public_address:
            return instance.private_ip
        if self._host.kind == "serving" and not placement.fabric:
            return instance.public_ip
        return aws.ec2.Eip(self._host.name, domain="vpc", instance=instance.id, tags=self._tags(), opts=opts).public_ip

    def _model_disk(self, instance: aws.ec2.Instance, where: Rented, protect: bool) -> pulumi.Output[str]:
        """The volume for models; its id, once it is attached."""
        name = f"{self._host.name}-models"
        kept = pulumi.ResourceOptions(protect=protect, ignore_changes=["availabilityZone"])
        speed = disk_speed.ordered(where, "models")
        volume = aws.ebs.Volume(
            name,
            availability_zone=instance.availability_zone,
            size=where.placement.model_disk_gib,
            type=disk_speed.type_name(where, "models"),
            iops=speed.iops,
            throughput=speed.throughput_mib_s,
            encrypted=True,
            tags={**self._tags(), "Name": name},
            opts=pulumi.ResourceOptions.merge(self._mine, kept),
        )
        attachment = aws.ec2.VolumeAttachment(
            name, device_name="/dev/sdf", instance_id=instance.id, volume_id=volume.id, opts=self._mine
        )
        return attachment.volume_id


def _boot_disk(where: Rented) -> aws.ec2.InstanceRootBlockDeviceArgs:
    speed = disk_speed.ordered(where, "root")
    return aws.ec2.InstanceRootBlockDeviceArgs(
        encrypted=True,
        volume_type=disk_speed.type_name(where, "root"),
        volume_size=where.placement.disk_gib,
        iops=speed.iops,
        throughput=speed.throughput_mib_s,
    )
