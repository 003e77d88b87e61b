"""A region's network: one subnet, SSH and the API from the ranges of the fleet, vLLM from the gateways only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pulumi

from infra.existing import Lookup
from infra.hosts import SERVICE_PORTS, CloudArgs, has_private, needs_nat, placed, range_of, rented
from infra.sdk import azure
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import AzurePlacement


class AzureNetwork:
    """Resource group, virtual network, subnet and security groups; of a network that exists, only what it lacks.

    No component of Pulumi: in the stacks that exist its resources are children of the cloud's component, and another
    parent would be another URN.

    Attributes:
        common: arguments of every resource of the region: resource group, location, tags.
        members: kind of host -> the id of its application security group, used in rules; none beside own rules.
    """

    def __init__(
        self,
        name: str,
        args: CloudArgs,
        hosts: tuple[HostPlan, ...],
        far_gateways: Sequence[pulumi.Input[str]],
        opts: pulumi.ResourceOptions,
    ) -> None:
        self._args, self._opts, self._far_gateways = args, opts, far_gateways
        self._private = has_private(hosts)
        self._mirror = args.mirror_among(hosts)
        self._peer_ports = args.peer_ports_among(hosts)
        self._name = name
        region = rented(hosts[0]).placement.region
        existing = placed(hosts[0], AzurePlacement).existing
        if existing:
            _look_up(hosts, Lookup(args, opts))
        group = azure.resources.ResourceGroup(
            name, resource_group_name=name, location=region, tags=args.tags, opts=opts
        )
        self.common: dict[str, Any] = {"resource_group_name": group.name, "location": region, "tags": args.tags}
        self._subnet = None if existing else self._own(hosts)
        self.members: dict[str, pulumi.Output[str]] = {}
        self._groups: dict[str, pulumi.Output[str]] = {}
        if existing and existing.has_own_rules:
            return
        self.members = {
            kind: azure.network.ApplicationSecurityGroup(
                f"{name}-{kind}",
                application_security_group_name=f"{name}-{kind}",
                **self.common,
                opts=self._opts,
            ).id
            for kind in ("serving", "gateway")
        }
        self._groups = {kind: self._rules(f"{name}-{kind}", kind) for kind in self.members}

    def subnet(self, host: HostPlan) -> pulumi.Input[str] | None:
        """The id of a host's subnet; it spans the zones of the region."""
        existing = placed(host, AzurePlacement).existing
        return existing.subnet if existing else self._subnet

    def group(self, host: HostPlan) -> pulumi.Input[str]:
        """The id of the network security group with the rules for a host."""
        existing = placed(host, AzurePlacement).existing
        return (existing and existing.network_security_group) or self._groups[host.kind]

    def _own(self, hosts: tuple[HostPlan, ...]) -> pulumi.Output[str]:
        """Makes the virtual network and its subnet."""
        name, block = self._name, str(range_of(hosts))
        network = azure.network.VirtualNetwork(
            name,
            virtual_network_name=name,
            address_space={"address_prefixes": [block]},
            **self.common,
            opts=self._opts,
        )
        return azure.network.Subnet(
            name,
            subnet_name="hosts",
            resource_group_name=self.common["resource_group_name"],
            virtual_network_name=network.name,
            address_prefix=block,
            nat_gateway={"id": self._nat(f"{name}-nat")} if needs_nat(hosts) else None,
            # Outbound traffic needs that NAT or a public address of the fleet.
            default_outbound_access=False,
            opts=self._opts,
        ).id

    def _nat(self, name: str) -> pulumi.Output[str]:
        """NAT for hosts without a public address."""
        address = azure.network.PublicIPAddress(
            name,
            public_ip_address_name=name,
            sku={"name": "Standard"},
            public_ip_allocation_method="Static",
            **self.common,
            opts=self._opts,
        )
        return azure.network.NatGateway(
            name,
            nat_gateway_name=name,
            sku={"name": "Standard"},
            public_ip_addresses=[{"id": address.id}],
            **self.common,
            opts=self._opts,
        ).id

    def _rules(self, name: str, kind: str) -> pulumi.Output[str]:
        access = self._args.access
        rules: list[Any] = [_allow("ssh", 100, "22", access.ssh_from)]
        origin = {"source_application_security_groups": [{"id": self.members["gateway"]}]}
        if kind == "gateway":
            rules += [
                _allow(f"{each.name}-{each.port}", priority, str(each.port), list(each.networks))
                for each, priority in zip(self._args.ports, (200 + self._args.ports[0].port % 100, 300), strict=False)
                if each.networks
            ]
            for number, port in enumerate(self._peer_ports):
                rules.append({**_allow(f"peers-{port}", 340 + number, str(port), []), **origin})
        if kind == "serving":
            ports = f"{SERVICE_PORTS[0]}-{SERVICE_PORTS[1]}"
            for number, (what, where) in enumerate(
                [("vllm", ports), *([("ssh-inside", "22")] if self._private else [])]
            ):
                rules.append({**_allow(what, 300 + number, where, []), **origin})
                # A rule takes groups or addresses, not both.
                if self._far_gateways:
                    rules.append(_allow(f"{what}-far", 310 + number, where, self._far_gateways))
        if self._mirror and self._mirror.kind == kind:
            everyone = {"source_application_security_groups": [{"id": member} for member in self.members.values()]}
            for number, port in enumerate(self._mirror.ports):
                rules.append({**_allow(f"mirror-{port}", 320 + number, str(port), []), **everyone})
                if self._mirror.far:
                    rules.append(_allow(f"mirror-{port}-far", 330 + number, str(port), self._mirror.far))
        # Azure's default rules allow all traffic inside the virtual network.
        rules.append({**_allow("rest", 4096, "*", ["*"]), "access": "Deny", "protocol": "*"})
        return azure.network.NetworkSecurityGroup(
            name, network_security_group_name=name, security_rules=rules, **self.common, opts=self._opts
        ).id


def _look_up(hosts: tuple[HostPlan, ...], lookup: Lookup) -> None:
    """Compares the subnets that the hosts are given with those of the subscription.

    Raises:
        FleetError: one does not exist, or is in another region than ``fleet.yml`` says.
    """
    for host in hosts:
        placement = placed(host, AzurePlacement)
        if placement.existing is None or not lookup.is_new(placement.existing.subnet):
            continue
        parts = placement.existing.subnet.split("/")
        in_group = {"resource_group_name": parts[4], "virtual_network_name": parts[8]}
        network = lookup.ask(host, ("subnet",), azure.network.get_virtual_network, **in_group)
        lookup.must(host, ("subnet",), str(network.location), placement.region, "region")
        subnet = lookup.ask(host, ("subnet",), azure.network.get_subnet, **in_group, subnet_name=parts[10])
        for block in subnet.address_prefixes or [str(subnet.address_prefix)]:
            lookup.inside(host, ("subnet",), block)


def _allow(name: str, priority: int, ports: str, networks: Sequence[pulumi.Input[str]]) -> Any:
    rule: dict[str, Any] = {
        "name": name,
        "priority": priority,
        "direction": "Inbound",
        "access": "Allow",
        "protocol": "Tcp",
        "source_port_range": "*",
        "destination_address_prefix": "*",
        "destination_port_range": ports,
    }
    if networks == ["*"]:
        return {**rule, "source_address_prefix": "*"}
    return {**rule, "source_address_prefixes": networks} if networks else rule
