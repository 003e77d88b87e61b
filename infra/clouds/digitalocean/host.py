"""One host of DigitalOcean: a droplet with its host key."""

from __future__ import annotations

import pulumi
import pulumi_digitalocean as do

from infra.cloud_init import user_data
from infra.clouds.digitalocean.capacity import Sizes
from infra.clouds.digitalocean.network import DigitalOceanNetwork
from infra.hosts import CloudArgs, HostRecord, placed, rented
from infra.images import named_image
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import DigitalOceanPlacement

#: Ignored changes of a host that exists: they would replace it. The last two are read from the droplet, whose image may
#: have turned them on (resource_droplet.go:510, 524).
_KEPT = ["userData", "sshKeys", "monitoring", "gpuPartitionMode"]


class DigitalOceanHost:
    """A droplet. No component of Pulumi, for the reason that :class:`DigitalOceanNetwork` gives.

    Attributes:
        record: its entry in ``stack.json``.
    """

    def __init__(
        self,
        host: HostPlan,
        args: CloudArgs,
        network: DigitalOceanNetwork,
        sizes: Sizes,
        key: do.SshKey,
        opts: pulumi.ResourceOptions,
    ) -> None:
        where, placement = rented(host), placed(host, DigitalOceanPlacement)
        host_key = args.host_key(host, pulumi.ResourceOptions(parent=opts.parent))
        droplet = do.Droplet(
            host.name,
            name=f"{args.fleet}-{host.name}",
            size=sizes.offered(where.shape, placement.region),
            image=named_image(where) or where.image,
            region=placement.region,
            vpc_uuid=network.regions[placement.region],
            public_networking=placement.public_address,
            ssh_keys=[key.fingerprint],
            user_data=user_data(host.user, args.authorised_keys, host_key),
            # A tag is one word there.
            tags=[network.tags[host.kind], *(f"{key}:{value}" for key, value in args.own_tags.items())],
            opts=pulumi.ResourceOptions.merge(opts, args.host_options(host, placement.region, _KEPT, image="image")),
        )
        private = droplet.ipv4_address_private
        address = droplet.ipv4_address if placement.public_address else private
        self.record = HostRecord(address, droplet.id, host.user, host_key.public_key, placement.region, private)
