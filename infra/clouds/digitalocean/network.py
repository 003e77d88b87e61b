"""Networks per region and firewalls by tag: SSH and the API from the fleet's ranges, vLLM from the gateways only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
import pulumi_digitalocean as do

from infra.existing import Lookup
from infra.hosts import EVERYWHERE, SERVICE_PORTS, CloudArgs, has_private, needs_nat, placed, rented
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.private_networks import block
from vllm_fleet.schema.cloud import DigitalOceanPlacement


class DigitalOceanNetwork:
    """A network in each region, and one firewall for each kind of host.

    No component of Pulumi: in the stacks that exist its resources are children of the cloud's component, and another
    parent would be another URN.

    Attributes:
        tags: kind of host -> its tag. Firewalls use tags, so that a deleted host changes no rule.
        regions: region -> the id of its network.
    """

    def __init__(
        self, args: CloudArgs, far_gateways: Mapping[str, pulumi.Input[str]], opts: pulumi.ResourceOptions
    ) -> None:
        self._args, self._opts = args, opts
        # First, because its lookups may end the program.
        regions = {rented(hosts[0]).placement.region: hosts for hosts in args.networks}
        self.regions = {region: self._network(region, hosts) for region, hosts in regions.items()}
        self.tags = {
            kind: do.Tag(f"{args.fleet}-{kind}", name=f"{args.fleet}-{kind}", opts=opts).name
            for kind in ("serving", "gateway")
        }
        self._firewalls(far_gateways)

    def _network(self, region: str, hosts: tuple[HostPlan, ...]) -> pulumi.Output[str]:
        """The id of a region's network; of one that the stack makes, known after its NAT gateway exists."""
        name = self._args.network_name(hosts[0])
        if existing := placed(hosts[0], DigitalOceanPlacement).existing:
            self._look_up(hosts[0], existing.vpc_uuid)
            return pulumi.Output.from_input(existing.vpc_uuid)
        # Networks of one account must not overlap, across fleets: without a range, DigitalOcean chooses a free one.
        chosen = block(hosts)
        network = do.Vpc(name, name=name, region=region, ip_range=str(chosen) if chosen else None, opts=self._opts).id
        if not needs_nat(hosts):
            return network
        nat = do.VpcNatGateway(
            name,
            name=name,
            region=region,
            type="PUBLIC",
            size=1,
            vpcs=[{"vpc_uuid": network, "default_gateway": True}],
            opts=self._opts,
        )
        # Droplets get their default route when they are created: the NAT gateway must exist before.
        return pulumi.Output.all(network, nat.id).apply(lambda ids: str(ids[0]))

    def _look_up(self, host: HostPlan, vpc: str) -> None:
        """Compares the network that the hosts are given with that of the account.

        Raises:
            FleetError: it does not exist, or is in another region than ``fleet.yml`` says.
        """
        lookup = Lookup(self._args, self._opts)
        network = lookup.ask(host, ("vpc_uuid",), do.get_vpc, id=vpc)
        lookup.must(host, ("vpc_uuid",), network.region, rented(host).placement.region, "region")
        lookup.inside(host, ("vpc_uuid",), network.ip_range)

    def _firewalls(self, far_gateways: Mapping[str, pulumi.Input[str]]) -> None:
        """One firewall for each kind of host; gateways of another cloud have no tag here: rules use their addresses."""
        args, tags = self._args, self.tags
        access = args.access
        ssh = {"protocol": "tcp", "port_range": "22", "source_addresses": access.ssh_from}
        gateways: dict[str, Any] = {"source_tags": [tags["gateway"]]}
        if far_gateways:
            gateways["source_addresses"] = list(far_gateways.values())
        inside = {"protocol": "tcp", "port_range": "22", **gateways}
        vllm = {"protocol": "tcp", "port_range": f"{SERVICE_PORTS[0]}-{SERVICE_PORTS[1]}", **gateways}
        api = [
            {"protocol": "tcp", "port_range": str(each.port), "source_addresses": list(each.networks)}
            for each in args.ports
            if each.networks
        ]
        peers = [
            {"protocol": "tcp", "port_range": str(port), "source_tags": [tags["gateway"]]}
            for port in args.peer_ports_among(args.hosts)
        ]
        rules: dict[str, list[Any]] = {
            "serving": [ssh, vllm, *([inside] if has_private(args.hosts) else [])],
            "gateway": [ssh, *api, *peers],
        }
        if mirror := args.mirror_among(args.hosts):
            everyone: dict[str, Any] = {"source_tags": list(tags.values())}
            if mirror.far:
                everyone["source_addresses"] = list(mirror.far)
            rules[mirror.kind] += [{"protocol": "tcp", "port_range": str(port), **everyone} for port in mirror.ports]
        for kind, inbound in rules.items():
            do.Firewall(
                f"{args.fleet}-{kind}",
                name=f"{args.fleet}-{kind}",
                tags=[tags[kind]],
                inbound_rules=inbound,
                outbound_rules=[
                    {"protocol": protocol, "port_range": "1-65535", "destination_addresses": [EVERYWHERE, "::/0"]}
                    for protocol in ("tcp", "udp")
                ],
                opts=self._opts,
            )
