"""Google Cloud: a network in each project and region, and hosts in it."""

from __future__ import annotations

import pulumi

from infra.clouds.gcp.host import GcpHost
from infra.clouds.gcp.images import GcpImages
from infra.clouds.gcp.network import GcpNetwork
from infra.hosts import CloudArgs, CloudComponent, placed
from infra.sdk import gcp
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import GcpPlacement


class GcpCloud(CloudComponent):
    """One provider and one network per project and region; the SDK finds the credentials."""

    def __init__(self, name: str, args: CloudArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("GcpCloud", name, opts)
        self.hosts = {}
        for hosts in args.networks:
            self._region(args, hosts)
        self.register_hosts()

    def _region(self, args: CloudArgs, hosts: tuple[HostPlan, ...]) -> None:
        name = args.network_name(hosts[0])
        placement = placed(hosts[0], GcpPlacement)
        provider = gcp.Provider(
            name,
            project=placement.project,
            region=placement.region,
            default_labels=args.tags,
            opts=pulumi.ResourceOptions(parent=self),
        )
        below = pulumi.ResourceOptions(parent=self, provider=provider)
        network = GcpNetwork(name, args, hosts, self.far_gateways(args, hosts), below)
        images = GcpImages(below)
        made = {host.name: GcpHost(host, args, network, images, below) for host in hosts}
        self.hosts = {**self.hosts, **{host: instance.record for host, instance in made.items()}}
