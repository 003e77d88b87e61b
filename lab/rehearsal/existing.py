"""The networks that an account has before any stack: those that a fleet names under ``existing``.

They are records like those of a stack, so that hosts can refer to them. What is left after a rehearsal must be they, as
they were.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterator, Sequence
from typing import Any

from lab.rehearsal.cloud import Cloud, Record
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import (
    AwsPlacement,
    AzurePlacement,
    DigitalOceanPlacement,
    GcpPlacement,
    OciPlacement,
    Placement,
)

#: A range of the account's networks that no stack of an example makes.
RANGE = "10.8.0.0/16"


def furnish(cloud: Cloud, hosts: Sequence[HostPlan]) -> list[Record]:
    """Creates the networks that hosts are to be put into, without a stack.

    Args:
        cloud: the emulated cloud.
        hosts: of a fleet.

    Returns:
        Their records.
    """
    made: dict[tuple[str, str], Record] = {}
    for host in hosts:
        for record in _of(host.rented.placement) if host.rented else ():
            made.setdefault((record.type, record.id), record)
    for record in made.values():
        cloud.put(record)
    return list(made.values())


def _of(placement: Placement) -> Iterator[Record]:
    if not placement.existing:
        return
    if isinstance(placement, AwsPlacement):
        yield from _aws(placement)
    elif isinstance(placement, GcpPlacement):
        yield from _gcp(placement)
    elif isinstance(placement, AzurePlacement):
        yield from _azure(placement)
    elif isinstance(placement, OciPlacement):
        yield from _oci(placement)
    elif isinstance(placement, DigitalOceanPlacement) and placement.existing:
        data = {"name": "company", "region": placement.region, "ipRange": placement.existing.range or RANGE}
        yield _record("digitalocean:index/vpc:Vpc", placement.existing.vpc_uuid, data)


def _aws(placement: AwsPlacement) -> Iterator[Record]:
    existing = placement.existing
    if existing is None:
        return
    whole = existing.range or RANGE
    yield _record("aws:ec2/vpc:Vpc", existing.vpc, {"cidrBlock": whole})
    yield _record("aws:ec2/internetGateway:InternetGateway", f"igw-{existing.vpc[4:]}", {"vpcId": existing.vpc})
    parts = list(ipaddress.ip_network(whole).subnets(prefixlen_diff=4))
    for zone, id_ in existing.subnets.items():
        # Some part of the network, the same one in each run.
        block = parts[hashlib.sha256(id_.encode()).digest()[0] % len(parts)]
        data = {"vpcId": existing.vpc, "availabilityZone": zone, "cidrBlock": str(block)}
        yield _record("aws:ec2/subnet:Subnet", id_, data)
    for id_ in existing.security_groups:
        yield _record("aws:ec2/securityGroup:SecurityGroup", id_, {"vpcId": existing.vpc, "name": f"company-{id_}"})


def _gcp(placement: GcpPlacement) -> Iterator[Record]:
    existing = placement.existing
    if existing is None:
        return
    project = existing.project or placement.project
    network = f"projects/{project}/global/networks/{existing.network}"
    link = f"https://www.googleapis.com/compute/v1/{network}"
    yield _record("gcp:compute/network:Network", network, {"name": existing.network, "selfLink": link})
    subnet = f"projects/{project}/regions/{placement.region}/subnetworks/{existing.subnetwork}"
    data = {
        "name": existing.subnetwork,
        "project": project,
        "region": placement.region,
        "network": link,
        "ipCidrRange": existing.range or RANGE,
    }
    yield _record("gcp:compute/subnetwork:Subnetwork", subnet, data)


def _azure(placement: AzurePlacement) -> Iterator[Record]:
    existing = placement.existing
    if existing is None:
        return
    network = existing.subnet.rpartition("/subnets/")[0]
    named = {"location": placement.region, "name": network.rpartition("/")[2]}
    yield _record("azure-native:network:VirtualNetwork", network, named)
    data = {"name": existing.subnet.rpartition("/")[2], "addressPrefix": existing.range or RANGE}
    yield _record("azure-native:network:Subnet", existing.subnet, data)
    if group := existing.network_security_group:
        yield _record("azure-native:network:NetworkSecurityGroup", group, {"name": group.rpartition("/")[2]})


def _oci(placement: OciPlacement) -> Iterator[Record]:
    existing = placement.existing
    if existing is None:
        return
    yield _record("oci:Core/vcn:Vcn", existing.vcn, {"cidrBlocks": [existing.range or RANGE]})
    data = {"vcnId": existing.vcn, "cidrBlock": existing.range or RANGE, "prohibitPublicIpOnVnic": False}
    yield _record("oci:Core/subnet:Subnet", existing.subnet, data)
    for id_ in existing.network_security_groups:
        yield _record("oci:Core/networkSecurityGroup:NetworkSecurityGroup", id_, {"vcnId": existing.vcn})


def _record(kind: str, id_: str, data: dict[str, Any]) -> Record:
    return Record(id_, kind, id_, data, dict(data))
