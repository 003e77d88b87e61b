"""A region's network: a subnet a zone, SSH and the API only from where the fleet says, vLLM only from the gateways."""

from __future__ import annotations

import pulumi

from infra.hosts import SERVICE_PORTS, CloudArgs
from infra.sdk import aws

_NETWORK = "10.60.0.0/16"
_EVERYWHERE = "0.0.0.0/0"


class AwsNetwork(pulumi.ComponentResource):
    """VPC, subnets, route and security groups.

    Attributes:
        subnets: zone -> the id of its subnet.
        groups: kind of host -> the id of its security group.
        gateway: to the internet; an elastic address is refused before it is there.
    """

    subnets: dict[str, pulumi.Output[str]]
    groups: dict[str, pulumi.Output[str]]
    gateway: aws.ec2.InternetGateway

    def __init__(self, name: str, args: CloudArgs, zones: tuple[str, ...], opts: pulumi.ResourceOptions) -> None:
        super().__init__("fleet:infra:AwsNetwork", name, None, opts)
        self._name = name
        self._mine = pulumi.ResourceOptions(parent=self, provider=opts.provider)
        self._vpc = aws.ec2.Vpc(
            name,
            cidr_block=_NETWORK,
            enable_dns_hostnames=True,
            enable_dns_support=True,
            tags={"Name": name},
            opts=self._mine,
        )
        self.subnets = self._subnets(zones)
        self.groups = {kind: self._group(kind) for kind in ("serving", "gateway")}
        self._rules(args)
        self.register_outputs({"vpc": self._vpc.id})

    def _subnets(self, zones: tuple[str, ...]) -> dict[str, pulumi.Output[str]]:
        tags = {"Name": self._name}
        self.gateway = aws.ec2.InternetGateway(self._name, vpc_id=self._vpc.id, tags=tags, opts=self._mine)
        table = aws.ec2.RouteTable(
            self._name,
            vpc_id=self._vpc.id,
            routes=[{"cidr_block": _EVERYWHERE, "gateway_id": self.gateway.id}],
            tags=tags,
            opts=self._mine,
        )
        found = {}
        for zone in zones:
            name = f"{self._name}-{zone[-1]}"
            subnet = aws.ec2.Subnet(
                name,
                vpc_id=self._vpc.id,
                availability_zone=zone,
                # By the letter of the zone, so that another zone in the list moves no subnet.
                cidr_block=f"10.60.{(ord(zone[-1]) - ord('a')) * 16}.0/20",
                tags={"Name": name},
                opts=self._mine,
            )
            aws.ec2.RouteTableAssociation(name, subnet_id=subnet.id, route_table_id=table.id, opts=self._mine)
            found[zone] = subnet.id
        return found

    def _group(self, kind: str) -> pulumi.Output[str]:
        name = f"{self._name}-{kind}"
        group = aws.ec2.SecurityGroup(
            name,
            name=name,
            description=f"{kind} hosts of vllm-fleet",
            vpc_id=self._vpc.id,
            tags={"Name": name},
            opts=self._mine,
        )
        aws.vpc.SecurityGroupEgressRule(
            name, security_group_id=group.id, ip_protocol="-1", cidr_ipv4=_EVERYWHERE, opts=self._mine
        )
        return group.id

    def _rules(self, args: CloudArgs) -> None:
        for kind in self.groups:
            for network in args.access.ssh_from:
                self._allow(kind, "ssh", (22, 22), network)
        for port in args.ports:
            for network in args.access.api_from:
                self._allow("gateway", "api", (port, port), network)
        self._allow("serving", "vllm", SERVICE_PORTS, None)
        # The interfaces of a fabric (EFA) talk among themselves by no protocol that has a number.
        aws.vpc.SecurityGroupIngressRule(
            f"{self._name}-fabric",
            security_group_id=self.groups["serving"],
            referenced_security_group_id=self.groups["serving"],
            ip_protocol="-1",
            opts=self._mine,
        )

    def _allow(self, kind: str, what: str, ports: tuple[int, int], network: str | None) -> None:
        """Lets TCP in from a network, or from the gateways where none is given."""
        if network is None:
            origin = {"referenced_security_group_id": self.groups["gateway"]}
        else:
            origin = {"cidr_ipv6" if ":" in network else "cidr_ipv4": pulumi.Output.from_input(network)}
        suffix = f"-{network.replace('/', '-').replace(':', '.')}" if network else ""
        aws.vpc.SecurityGroupIngressRule(
            f"{self._name}-{kind}-{what}{suffix}",
            security_group_id=self.groups[kind],
            ip_protocol="tcp",
            from_port=ports[0],
            to_port=ports[1],
            **origin,  # type: ignore[arg-type]
            opts=self._mine,
        )
