"""Amazon Web Services: a network in each region, and hosts in it."""

from __future__ import annotations

from collections.abc import Iterator

import pulumi

from infra.clouds.aws.blocks import Blocks
from infra.clouds.aws.capacity import Capacity
from infra.clouds.aws.host import AwsHost
from infra.clouds.aws.images import AwsImages
from infra.clouds.aws.network import AwsNetwork
from infra.hosts import CloudArgs, CloudComponent, rented
from infra.sdk import aws
from vllm_fleet.fleet.host_plan import HostPlan


class AwsCloud(CloudComponent):
    """One provider and one network per region; the AWS SDK finds account and credentials."""

    def __init__(self, name: str, args: CloudArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("AwsCloud", name, opts)
        self.hosts = {}
        self._blocks = Blocks(args.state)
        for hosts in args.networks:
            self._region(args, hosts)
        self.blocks = self._blocks.ordered
        self.register_hosts()

    def _region(self, args: CloudArgs, hosts: tuple[HostPlan, ...]) -> None:
        name = args.network_name(hosts[0])
        provider = aws.Provider(
            name,
            region=rented(hosts[0]).placement.region,
            default_tags={"tags": args.tags},
            # The provider itself compares it, before a preview, a refresh and a destroy too.
            allowed_account_ids=[args.account.aws] if args.account.aws else None,
            opts=pulumi.ResourceOptions(parent=self),
        )
        below = pulumi.ResourceOptions(parent=self, provider=provider)
        network = AwsNetwork(name, args, hosts, self.far_gateways(args, hosts), below)
        images = AwsImages(below)
        made: dict[str, AwsHost] = {}
        for members in _pools(hosts):
            capacity = Capacity(members, args, self._blocks, below)
            made |= {host.name: AwsHost(host, args, network, capacity, images, below) for host in capacity.hosts}
        self.hosts = {**self.hosts, **{host: instance.record for host, instance in made.items()}}


def _pools(hosts: tuple[HostPlan, ...]) -> Iterator[tuple[HostPlan, ...]]:
    for pool in dict.fromkeys(host.pool for host in hosts):
        yield tuple(host for host in hosts if host.pool == pool)
