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
            self._region(args, hosts)
        self.register_hosts()

    def _region(self, args: CloudArgs, hosts: tuple[HostPlan, ...]) -> None:
        name = args.network_name(hosts[0])
        provider = azure.Provider(
            name,
            location=rented(hosts[0]).placement.region,
            # Instead of the one that the Azure CLI has chosen.
            subscription_id=args.account.azure,
            opts=pulumi.ResourceOptions(parent=self),
        )
        below = pulumi.ResourceOptions(parent=self, provider=provider)
        network = AzureNetwork(name, args, hosts, list(self.far_gateways(args, hosts).values()), below)
        made = {host.name: AzureHost(host, args, network, below) for host in hosts}
        self.hosts = {**self.hosts, **{host: machine.record for host, machine in made.items()}}
