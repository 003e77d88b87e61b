"""A region's network: subnets per zone, SSH and the API from the ranges of the fleet, vLLM from the gateways only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi

from infra.existing import Lookup
from infra.hosts import EVERYWHERE, SERVICE_PORTS, CloudArgs, has_private, needs_nat, placed, range_of, rented
from infra.sdk import aws
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.private_networks import PARTS, part
from vllm_fleet.schema.cloud import AwsPlacement
from vllm_fleet.schema.existing import AwsExisting


class AwsNetwork(pulumi.ComponentResource):
    """VPC, subnets, route and security groups; of a VPC that the account has, only what it is not given.

    Attributes:
        subnets: zone -> the id of its public subnet; none in a VPC of the account.
        inner: zone -> the id of its private subnet; none in a VPC of the account.
        groups: kind of host -> the id of its security group; none where the account's own are given.
        ready: what elastic addresses wait for: AWS refuses them before an internet gateway exists.
    """

    subnets: dict[str, pulumi.Output[str]]
    inner: dict[str, pulumi.Output[str]]
    groups: dict[str, pulumi.Output[str]]
    ready: list[pulumi.Resource]

    def __init__(
        self,
        name: str,
        args: CloudArgs,
        hosts: tuple[HostPlan, ...],
        far_gateways: Mapping[str, pulumi.Input[str]],
        opts: pulumi.ResourceOptions,
    ) -> None:
        super().__init__("fleet:infra:AwsNetwork", name, None, opts)
        self._name = name
        self._mine = pulumi.ResourceOptions(parent=self, provider=opts.provider)
        self.subnets, self.inner, self.groups, self.ready = {}, {}, {}, []
        existing = _existing(hosts[0])
        self._vpc: pulumi.Input[str]
        if existing:
            _look_up(hosts, Lookup(args, opts))
            self._vpc = existing.vpc
        else:
            self._vpc = self._own(hosts)
        if not (existing and existing.has_own_rules):
            self.groups = {kind: self._group(kind) for kind in ("serving", "gateway")}
            self._rules(args, hosts)
            self._from_gateways("vllm", SERVICE_PORTS, far_gateways)
            if has_private(hosts):
                self._from_gateways("ssh", (22, 22), far_gateways)
        self.register_outputs({"vpc": self._vpc})

    def subnet(self, host: HostPlan, zone: str) -> pulumi.Input[str]:
        """The subnet of a host in a zone."""
        if existing := _existing(host):
            return existing.subnets[zone]
        return (self.subnets if rented(host).placement.public_address else self.inner)[zone]

    def groups_of(self, host: HostPlan) -> list[pulumi.Input[str]]:
        """The security groups of a host."""
        existing = _existing(host)
        return [*existing.security_groups] if existing and existing.security_groups else [self.groups[host.kind]]

    def _own(self, hosts: tuple[HostPlan, ...]) -> pulumi.Output[str]:
        """Makes the VPC with its subnets and routes."""
        name = self._name
        self._range = range_of(hosts)
        vpc = aws.ec2.Vpc(
            name,
            cidr_block=str(self._range),
            enable_dns_hostnames=True,
            enable_dns_support=True,
            tags={"Name": name},
            opts=self._mine,
        )
        self._vpc = vpc.id
        gateway = aws.ec2.InternetGateway(name, vpc_id=vpc.id, tags={"Name": name}, opts=self._mine)
        self.ready = [gateway]
        self.subnets = self._subnets("", _zones(hosts), {"gateway_id": gateway.id})
        inner = tuple(host for host in hosts if has_private([host]))
        self.inner = self._subnets("-inner", _zones(inner), self._nat() if needs_nat(hosts) else {})
        return vpc.id

    def _nat(self) -> Any:
        """The default route of hosts without a public address: one NAT per region, in its first zone."""
        name = f"{self._name}-nat"
        after = pulumi.ResourceOptions.merge(self._mine, pulumi.ResourceOptions(depends_on=self.ready))
        address = aws.ec2.Eip(name, domain="vpc", tags={"Name": name}, opts=after)
        nat = aws.ec2.NatGateway(
            name,
            allocation_id=address.id,
            subnet_id=self.subnets[min(self.subnets)],
            tags={"Name": name},
            # A new first zone does not move it: that would interrupt the traffic of every host.
            opts=pulumi.ResourceOptions.merge(self._mine, pulumi.ResourceOptions(ignore_changes=["subnetId"])),
        )
        return {"nat_gateway_id": nat.id}

    def _subnets(
        self, suffix: str, zones: tuple[str, ...], way_out: dict[str, pulumi.Output[str]]
    ) -> dict[str, pulumi.Output[str]]:
        if not zones:
            return {}
        label = f"{self._name}{suffix}"
        table = aws.ec2.RouteTable(label, vpc_id=self._vpc, tags={"Name": label}, opts=self._mine)
        if way_out:
            # A resource of its own, so that Pulumi leaves routes alone that others add for joined networks.
            aws.ec2.Route(label, route_table_id=table.id, destination_cidr_block=EVERYWHERE, **way_out, opts=self._mine)
        subnets = {}
        for zone in zones:
            name = f"{self._name}-{zone[-1]}{suffix}"
            # From the letter of the zone, so that a new zone in the list does not move other subnets.
            index = (ord(zone[-1]) - ord("a")) * 2 + (1 if suffix else 0)
            subnet = aws.ec2.Subnet(
                name,
                vpc_id=self._vpc,
                availability_zone=zone,
                cidr_block=str(part(self._range, PARTS["aws"], index)),
                tags={"Name": name},
                opts=self._mine,
            )
            aws.ec2.RouteTableAssociation(name, subnet_id=subnet.id, route_table_id=table.id, opts=self._mine)
            subnets[zone] = subnet.id
        return subnets

    def _group(self, kind: str) -> pulumi.Output[str]:
        name = f"{self._name}-{kind}"
        group = aws.ec2.SecurityGroup(
            name,
            name=name,
            description=f"{kind} hosts of vllm-fleet",
            vpc_id=self._vpc,
            tags={"Name": name},
            opts=self._mine,
        )
        aws.vpc.SecurityGroupEgressRule(
            name, security_group_id=group.id, ip_protocol="-1", cidr_ipv4=EVERYWHERE, opts=self._mine
        )
        return group.id

    def _rules(self, args: CloudArgs, hosts: tuple[HostPlan, ...]) -> None:
        for kind in self.groups:
            for network in args.access.ssh_from:
                self._allow(kind, "ssh", (22, 22), network)
        for open_port in args.ports:
            for network in open_port.networks:
                self._allow("gateway", open_port.name, (open_port.port, open_port.port), network)
        for port in args.peer_ports_among(hosts):
            source = {"referenced_security_group_id": self.groups["gateway"]}
            self._ingress("gateway", f"peers-{port}", (port, port), source)
        if mirror := args.mirror_among(hosts):
            for port in mirror.ports:
                for origin, group in self.groups.items():
                    source = {"referenced_security_group_id": group}
                    self._ingress(mirror.kind, f"mirror-{port}-{origin}", (port, port), source)
                for network in mirror.far:
                    self._allow(mirror.kind, f"mirror-{port}", (port, port), network)
        if any(placed(host, AwsPlacement).fabric for host in hosts):
            self._fabric_rules()

    def _fabric_rules(self) -> None:
        """Opens the serving hosts to each other for EFA, whose traffic has no protocol number.

        EFA wants the group itself named in both directions: a rule for all addresses does not count.
        """
        name, group = f"{self._name}-fabric", self.groups["serving"]
        for rule in (aws.vpc.SecurityGroupIngressRule, aws.vpc.SecurityGroupEgressRule):
            rule(name, security_group_id=group, referenced_security_group_id=group, ip_protocol="-1", opts=self._mine)

    def _from_gateways(self, what: str, ports: tuple[int, int], far: Mapping[str, pulumi.Input[str]]) -> None:
        """Allows TCP to serving hosts from the gateways: by group in this network, by address from another one."""
        self._ingress("serving", what, ports, {"referenced_security_group_id": self.groups["gateway"]})
        for name, address in far.items():
            block = pulumi.Output.concat(address, "/32")
            self._ingress("serving", f"{what}-{name}", ports, {"cidr_ipv4": block})

    def _allow(self, kind: str, what: str, ports: tuple[int, int], network: str) -> None:
        """Allows TCP from a network."""
        origin = {"cidr_ipv6" if ":" in network else "cidr_ipv4": pulumi.Output.from_input(network)}
        self._ingress(kind, f"{what}-{network.replace('/', '-').replace(':', '.')}", ports, origin)

    def _ingress(self, kind: str, what: str, ports: tuple[int, int], origin: dict[str, pulumi.Output[str]]) -> None:
        aws.vpc.SecurityGroupIngressRule(
            f"{self._name}-{kind}-{what}",
            security_group_id=self.groups[kind],
            ip_protocol="tcp",
            from_port=ports[0],
            to_port=ports[1],
            **origin,  # type: ignore[arg-type] # one of two keywords of the same type
            opts=self._mine,
        )


def _existing(host: HostPlan) -> AwsExisting | None:
    return placed(host, AwsPlacement).existing


def _look_up(hosts: tuple[HostPlan, ...], lookup: Lookup) -> None:
    """Compares the subnets and groups that the hosts are given with those of the account.

    Raises:
        FleetError: one does not exist, or is in another network or zone than ``fleet.yml`` says.
    """
    for host in hosts:
        existing = _existing(host)
        for zone, id_ in existing.subnets.items() if existing else ():
            if existing and lookup.is_new(f"{zone} {id_}"):
                at = ("subnets", zone)
                subnet = lookup.ask(host, at, aws.ec2.get_subnet, id=id_)
                lookup.must(host, at, subnet.availability_zone, zone, "zone")
                lookup.must(host, at, subnet.vpc_id, existing.vpc, "VPC")
                lookup.inside(host, at, subnet.cidr_block)
        for id_ in existing.security_groups if existing else ():
            if existing and lookup.is_new(id_):
                group = lookup.ask(host, ("security_groups",), aws.ec2.get_security_group, id=id_)
                lookup.must(host, ("security_groups",), group.vpc_id, existing.vpc, f"VPC, of {id_},")


def _zones(hosts: tuple[HostPlan, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(zone for host in hosts for zone in rented(host).placement.all_zones))
