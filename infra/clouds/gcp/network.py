"""A region's network: one subnet, SSH and the API from the ranges of the fleet, vLLM from the gateways only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi

from infra.existing import Lookup
from infra.hosts import SERVICE_PORTS, CloudArgs, has_private, needs_nat, placed, range_of, rented
from infra.sdk import gcp
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import GcpPlacement


def tag(fleet: str, kind: str) -> str:
    """The network tag of a kind of host, used in firewall rules."""
    return f"{fleet}-{kind}"


class GcpNetwork(pulumi.ComponentResource):
    """Network, subnet and firewall; of a network that the account has, only the firewall, unless it has its own.

    The implied last rule of a network denies everything else. Rules are for the network tags of the fleet only.
    """

    def __init__(
        self,
        name: str,
        args: CloudArgs,
        hosts: tuple[HostPlan, ...],
        far_gateways: Mapping[str, pulumi.Input[str]],
        opts: pulumi.ResourceOptions,
    ) -> None:
        super().__init__("fleet:infra:GcpNetwork", name, None, opts)
        self._name = name
        self._mine = pulumi.ResourceOptions(parent=self, provider=opts.provider)
        #: Subnetwork of the account -> its link.
        self._subnets: dict[str, str] = {}
        self._subnet: pulumi.Input[str] = ""
        existing = placed(hosts[0], GcpPlacement).existing
        if existing:
            self._network: pulumi.Input[str] = self._look_up(hosts, Lookup(args, opts))
            # The rules are where the network is: in the host project of a Shared VPC.
            self._project = existing.project
        else:
            self._network = self._own(hosts)
            self._project = None
        if not (existing and existing.has_own_rules):
            self._rules(args, hosts, far_gateways)
        self.register_outputs({"network": self._network})

    def subnet(self, host: HostPlan) -> pulumi.Input[str]:
        """The subnet of a host; it spans the zones of the region."""
        existing = placed(host, GcpPlacement).existing
        return self._subnets[existing.subnetwork] if existing else self._subnet

    def _own(self, hosts: tuple[HostPlan, ...]) -> pulumi.Output[str]:
        """Makes the network, its subnet and the NAT."""
        name, region = self._name, rented(hosts[0]).placement.region
        network = gcp.compute.Network(name, name=name, auto_create_subnetworks=False, opts=self._mine)
        self._subnet = gcp.compute.Subnetwork(
            name, name=name, network=network.id, region=region, ip_cidr_range=str(range_of(hosts)), opts=self._mine
        ).id
        if needs_nat(hosts):
            self._nat(network.id, region)
        return network.id

    def _look_up(self, hosts: tuple[HostPlan, ...], lookup: Lookup) -> str:
        """Compares the subnetworks that the hosts are given with those of the account.

        Returns:
            The link of their network.

        Raises:
            FleetError: one does not exist in the region, or is in another network than ``fleet.yml`` says.
        """
        link = ""
        for host in hosts:
            placement = placed(host, GcpPlacement)
            existing = placement.existing
            if existing is None or not lookup.is_new(existing.subnetwork):
                continue
            project, name, region = existing.project or placement.project, existing.subnetwork, placement.region
            ask = gcp.compute.get_subnetwork
            subnet = lookup.ask(host, ("subnetwork",), ask, name=name, project=project, region=region)
            lookup.must(host, ("subnetwork",), subnet.network.rpartition("/")[2], existing.network, "network")
            lookup.inside(host, ("subnetwork",), subnet.ip_cidr_range)
            self._subnets[name] = f"projects/{project}/regions/{region}/subnetworks/{name}"
            link = f"projects/{project}/global/networks/{existing.network}"
        return link

    def _rules(
        self, args: CloudArgs, hosts: tuple[HostPlan, ...], far_gateways: Mapping[str, pulumi.Input[str]]
    ) -> None:
        serving, gateway = tag(args.fleet, "serving"), tag(args.fleet, "gateway")
        self._allow("ssh", [serving, gateway], ["22"], args.access.ssh_from)
        for open_port in args.ports:
            self._allow(open_port.name, [gateway], [str(open_port.port)], list(open_port.networks))
        if peers := args.peer_ports_among(hosts):
            self._inside("peers", [str(port) for port in peers], gateway, source_tags=[gateway])
        if mirror := args.mirror_among(hosts):
            listening = [str(port) for port in mirror.ports]
            self._inside("mirror", listening, tag(args.fleet, mirror.kind), source_tags=[serving, gateway])
            self._allow("mirror-far", [tag(args.fleet, mirror.kind)], listening, list(mirror.far))
        for what, ports in (
            ("vllm", f"{SERVICE_PORTS[0]}-{SERVICE_PORTS[1]}"),
            *([("ssh-inside", "22")] if has_private(hosts) else []),
        ):
            self._inside(what, [ports], serving, source_tags=[gateway])
            if far_gateways:
                addresses = [pulumi.Output.concat(address, "/32") for address in far_gateways.values()]
                self._inside(f"{what}-far", [ports], serving, source_ranges=addresses)

    def _nat(self, network: pulumi.Output[str], region: str) -> None:
        """NAT for hosts without a public address."""
        router = gcp.compute.Router(self._name, name=self._name, network=network, region=region, opts=self._mine)
        gcp.compute.RouterNat(
            self._name,
            name=self._name,
            router=router.name,
            region=region,
            nat_ip_allocate_option="AUTO_ONLY",
            source_subnetwork_ip_ranges_to_nat="ALL_SUBNETWORKS_ALL_IP_RANGES",
            opts=self._mine,
        )

    def _inside(self, what: str, ports: list[str], target: str, **origin: Any) -> None:
        """Allows TCP from hosts of the fleet."""
        gcp.compute.Firewall(
            f"{self._name}-{what}",
            name=f"{self._name}-{what}",
            network=self._network,
            project=self._project,
            allows=[{"protocol": "tcp", "ports": ports}],
            target_tags=[target],
            **origin,
            opts=self._mine,
        )

    def _allow(self, what: str, targets: list[str], ports: list[str], networks: list[str]) -> None:
        """Allows TCP from networks, with one rule per address family."""
        for suffix, members in (
            ("", [network for network in networks if ":" not in network]),
            ("-ipv6", [network for network in networks if ":" in network]),
        ):
            if members:
                gcp.compute.Firewall(
                    f"{self._name}-{what}{suffix}",
                    name=f"{self._name}-{what}{suffix}",
                    network=self._network,
                    project=self._project,
                    allows=[{"protocol": "tcp", "ports": ports}],
                    source_ranges=members,
                    target_tags=targets,
                    opts=self._mine,
                )
