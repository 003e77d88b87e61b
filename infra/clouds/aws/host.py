"""One host of AWS: an instance with its host key, its disk and, where the fleet wants one, its disk for models."""

from __future__ import annotations

from typing import Any

import pulumi

from infra.cloud_init import user_data
from infra.clouds.aws.capacity import Capacity
from infra.clouds.aws.images import AwsImages
from infra.clouds.aws.network import AwsNetwork
from infra.hosts import CloudArgs, HostRecord, placed, rented
from infra.sdk import aws
from vllm_fleet.catalogue.rental import Rented
from vllm_fleet.fleet import disk_speed
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import AwsPlacement
from vllm_fleet.schema.cloud_table import Fabric

#: Ignored changes of a host that exists: they would stop or replace it.
_KEPT = ["userData", "subnetId", "availabilityZone", "associatePublicIpAddress", "launchTemplate"]


class AwsHost(pulumi.ComponentResource):
    """An instance. It has no instance profile unless the fleet names one: nothing on it uses the AWS API.

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
        key = args.host_key(host, pulumi.ResourceOptions(parent=self))
        protect = args.protects(host)
        instance = aws.ec2.Instance(
            host.name,
            instance_type=where.shape,
            ami=images.image(where),
            user_data=user_data(host.user, args.authorised_keys, key),
            metadata_options={"http_tokens": "required", "http_put_response_hop_limit": 1, "http_endpoint": "enabled"},
            root_block_device=_boot_disk(where),
            tags=self._tags(),
            iam_instance_profile=placed(host, AwsPlacement).instance_profile,
            **self._interfaces(where, network, zone),
            **capacity.arguments(),
            opts=pulumi.ResourceOptions.merge(
                self._mine,
                args.host_options(host, zone, [*_KEPT, *capacity.ignored], image="ami"),
            ),
        )
        volume = self._model_disk(instance, where, args) if where.placement.model_disk_gib else None
        kept = pulumi.ResourceOptions(protect=protect, depends_on=network.ready)
        address = self._address(instance, pulumi.ResourceOptions.merge(self._mine, kept))
        self.record = HostRecord(
            address, instance.id, host.user, key.public_key, instance.availability_zone, instance.private_ip, volume
        )

    def _tags(self) -> dict[str, str]:
        return {"Name": self._host.name, "host": self._host.name, "pool": self._host.pool}

    def _interfaces(self, where: Rented, network: AwsNetwork, zone: str) -> dict[str, Any]:
        """The network of the instance: one interface, and one for each card where the fleet wants the fabric."""
        groups = network.groups_of(self._host)
        placement = placed(self._host, AwsPlacement)
        subnet = network.subnet(self._host, zone)
        if placement.fabric and where.fabric:
            return {"launch_template": {"id": self._fabric(where.fabric, subnet, groups).id}}
        return {
            "subnet_id": subnet,
            "vpc_security_group_ids": groups,
            # Gateways have an address that stays; see _address.
            "associate_public_ip_address": placement.public_address and self._host.kind == "serving",
        }

    def _fabric(
        self, fabric: Fabric, subnet: pulumi.Input[str], groups: list[pulumi.Input[str]]
    ) -> aws.ec2.LaunchTemplate:
        """A template with all interfaces: EFA cannot be attached to an instance that runs.

        As AWS's page on instances with several network cards says: the first interface, card 0 and device 0, is a plain
        one; an EFA-only interface is device 1 of card 0, and device 0 of every other card.
        """
        shared: dict[str, Any] = {"subnet_id": subnet, "security_groups": groups, "delete_on_termination": "true"}
        plain: Any = {"network_card_index": 0, "device_index": 0, "interface_type": "interface", **shared}
        cards: list[Any] = [
            {"network_card_index": card, "device_index": int(card == 0), "interface_type": "efa-only", **shared}
            for card in fabric.cards
        ]
        return aws.ec2.LaunchTemplate(
            f"{self._host.name}-fabric",
            network_interfaces=[plain, *cards],
            tags=self._tags(),
            # An instance is launched from version 1, which stays the default: a newer one would replace the host.
            opts=pulumi.ResourceOptions.merge(self._mine, pulumi.ResourceOptions(ignore_changes=["networkInterfaces"])),
        )

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
        # Of an instance with several interfaces AWS wants to know which one.
        at: dict[str, Any] = {"instance": instance.id}
        if placement.fabric:
            at = {"network_interface": instance.primary_network_interface_id}
        return aws.ec2.Eip(self._host.name, domain="vpc", **at, tags=self._tags(), opts=opts).public_ip

    def _model_disk(self, instance: aws.ec2.Instance, where: Rented, args: CloudArgs) -> pulumi.Output[str]:
        """The volume for models; its id, once it is attached."""
        name = f"{self._host.name}-models"
        kept = args.disk_options(self._host, ["availabilityZone"])
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
            name,
            device_name="/dev/sdf",
            instance_id=instance.id,
            volume_id=volume.id,
            opts=pulumi.ResourceOptions.merge(self._mine, args.disk_options(self._host)),
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
