"""Microsoft Azure: a resource group with a network in each region, and virtual machines in it."""

from __future__ import annotations

import pulumi

from infra.clouds.azure.host import AzureHost
from infra.clouds.azure.network import AzureNetwork
from infra.hosts import CloudArgs, CloudComponent, rented
from infra.sdk import azure
from vllm_fleet.fleet.host_plan import HostPlan


class AzureCloud(CloudComponent):
    """One provider and one resource group per region; the Azure CLI gives subscription and credentials."""

    def __init__(self, name: str, args: CloudArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("AzureCloud", name, opts)
        self.hosts = {}
        for hosts in args.networks:
            self._region(args, rented(hosts[0]).placement.region, hosts)
        self.register_hosts()

    def _region(self, args: CloudArgs, region: str, hosts: tuple[HostPlan, ...]) -> None:
        name = f"{args.fleet}-{region}"
        provider = azure.Provider(name, location=region, opts=pulumi.ResourceOptions(parent=self))
        below = pulumi.ResourceOptions(parent=self, provider=provider)
        network = AzureNetwork(name, args, hosts, list(self.far_gateways(args, hosts).values()), below)
        made = {host.name: AzureHost(host, args, network, below) for host in hosts}
        self.hosts = {**self.hosts, **{host: machine.record for host, machine in made.items()}}
