"""One host of Oracle Cloud: an instance with its host key."""

from __future__ import annotations

from typing import Any

import pulumi

from infra.cloud_init import encoded_user_data
from infra.clouds.oci.images import OciImages
from infra.clouds.oci.network import OciNetwork
from infra.hosts import CloudArgs, HostRecord, placed, rented
from infra.sdk import oci
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import OciPlacement

#: Ignored changes of a host that exists: they would stop or replace it.
_KEPT = ["metadata", "availabilityDomain"]


class OciHost:
    """An instance. No component of Pulumi, for the reason that :class:`OciNetwork` gives.

    Attributes:
        record: its entry in ``stack.json``.
    """

    def __init__(
        self,
        host: HostPlan,
        args: CloudArgs,
        network: OciNetwork,
        images: OciImages,
        opts: pulumi.ResourceOptions,
    ) -> None:
        where, placement = rented(host), placed(host, OciPlacement)
        zone = args.zones.choose(host)
        key = args.host_key(host, pulumi.ResourceOptions(parent=opts.parent))
        flexible: dict[str, Any] = {}
        if where.shape.endswith(".Flex"):
            flexible["shape_config"] = {"ocpus": 4, "memory_in_gbs": 32}
        instance = oci.core.Instance(
            host.name,
            display_name=f"{args.fleet}-{host.name}",
            availability_domain=zone,
            shape=where.shape,
            source_details={
                "source_type": "image",
                "source_id": images.image(where),
                "boot_volume_size_in_gbs": str(where.placement.disk_gib),
            },
            create_vnic_details={
                "subnet_id": network.subnet(host),
                "nsg_ids": network.groups_of(host),
                "freeform_tags": args.tags,
                "assign_public_ip": str(placement.public_address).lower(),
            },
            metadata={"user_data": encoded_user_data(host.user, args.authorised_keys, key)},
            instance_options={"are_legacy_imds_endpoints_disabled": True},
            capacity_reservation_id=placement.capacity.id,
            **flexible,
            **network.common,
            opts=pulumi.ResourceOptions.merge(
                opts,
                args.host_options(host, zone, _KEPT, image="sourceDetails.sourceId"),
            ),
        )
        address = instance.public_ip if placement.public_address else instance.private_ip
        zone_now = instance.availability_domain
        self.record = HostRecord(address, instance.id, host.user, key.public_key, zone_now, instance.private_ip)
