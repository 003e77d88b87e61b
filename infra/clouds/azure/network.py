"""A region's network: one subnet, SSH and the API from the ranges of the fleet, vLLM from the gateways only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pulumi

from infra.hosts import SERVICE_PORTS, CloudArgs, has_private, needs_nat, range_of, rented
from infra.sdk import azure
from vllm_fleet.fleet.host_plan import HostPlan


class AzureNetwork:
    """Resource group, virtual network, subnet and security groups.

    No component of Pulumi: in the stacks that exist its resources are children of the cloud's component, and another
    parent would be another URN.

    Attributes:
        common: arguments of every resource of the region: resource group, location, tags.
        subnet: the id of the subnet.
        members: kind of host -> the id of its application security group, used in rules.
        groups: kind of host -> the id of its network security group with the rules.
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
        region = rented(hosts[0]).placement.region
        block = str(range_of(hosts))
        group = azure.resources.ResourceGroup(
            name, resource_group_name=name, location=region, tags=args.tags, opts=opts
        )
        self.common: dict[str, Any] = {"resource_group_name": group.name, "location": region, "tags": args.tags}
        network = azure.network.VirtualNetwork(
            name,
            virtual_network_name=name,
            address_space={"address_prefixes": [block]},
            **self.common,
            opts=self._opts,
        )
        self.subnet = azure.network.Subnet(
            name,
            subnet_name="hosts",
            resource_group_name=group.name,
            virtual_network_name=network.name,
            address_prefix=block,
            nat_gateway={"id": self._nat(f"{name}-nat")} if needs_nat(hosts) else None,
            # Outbound traffic needs that NAT or a public address of the fleet.
            default_outbound_access=False,
            opts=self._opts,
        ).id
        self.members = {
            kind: azure.network.ApplicationSecurityGroup(
                f"{name}-{kind}",
                application_security_group_name=f"{name}-{kind}",
                **self.common,
                opts=self._opts,
            ).id
            for kind in ("serving", "gateway")
        }
        self.groups = {kind: self._rules(f"{name}-{kind}", kind) for kind in self.members}

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
        if kind == "gateway" and access.api_from:
            rules += [_allow(f"api-{port}", 200 + port % 100, str(port), access.api_from) for port in self._args.ports]
        if kind == "serving":
            ports = f"{SERVICE_PORTS[0]}-{SERVICE_PORTS[1]}"
            origin = {"source_application_security_groups": [{"id": self.members["gateway"]}]}
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
