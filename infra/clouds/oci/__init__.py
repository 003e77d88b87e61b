"""Oracle Cloud: a network in each region and compartment, hosts in its availability domains."""

from __future__ import annotations

import pulumi

from infra.clouds.oci.host import OciHost
from infra.clouds.oci.images import OciImages
from infra.clouds.oci.network import OciNetwork
from infra.hosts import CloudArgs, CloudComponent, placed
from infra.sdk import oci
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import OciPlacement


class OciCloud(CloudComponent):
    """One provider and one network per region and compartment; the OCI SDK finds the credentials."""

    def __init__(self, name: str, args: CloudArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("OciCloud", name, opts)
        self.hosts = {}
        several = len({placed(host, OciPlacement).compartment for host in args.hosts}) > 1
        for hosts in args.networks:
            where = placed(hosts[0], OciPlacement)
            # The ids of compartments differ at their ends.
            suffix = f"{where.region}-{where.compartment[-6:]}" if several else where.region
            self._region(args, f"{args.fleet}-{suffix}", hosts)
        self.register_hosts()

    def _region(self, args: CloudArgs, name: str, hosts: tuple[HostPlan, ...]) -> None:
        where = placed(hosts[0], OciPlacement)
        provider = oci.Provider(name, region=where.region, opts=pulumi.ResourceOptions(parent=self))
        below = pulumi.ResourceOptions(parent=self, provider=provider)
        network = OciNetwork(name, args, hosts, self.far_gateways(args, hosts), below)
        images = OciImages(where.compartment, below)
        made = {host.name: OciHost(host, args, network, images, below) for host in hosts}
        self.hosts = {**self.hosts, **{host: instance.record for host, instance in made.items()}}
