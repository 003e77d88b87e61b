"""The errors of a cloud for inputs of the right form: missing references, names in use, and others."""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from lab.rehearsal import wire
from lab.rehearsal.cloud import Cloud, Record, RefusedError
from lab.rehearsal.difference import refusal
from lab.rehearsal.table import Kind, Table

Inputs = Mapping[str, Any]


def refuse(table: Table, kind: Kind, cloud: Cloud, inputs: Inputs, itself: str | None = None) -> None:
    """Raises the error of the cloud for a creation or, with an id, for an update.

    Raises:
        RefusedError: an id does not exist, a name is in use, or a rule of the cloud forbids it.
    """
    for path in kind.needs:
        if wire.value(inputs, path) is None:
            raise RefusedError(f"{kind.token}: {path} is required and is not given")
    for first, second in kind.conflicts:
        if wire.value(inputs, first) is not None and wire.value(inputs, second) is not None:
            raise RefusedError(f"{kind.token}: {first} conflicts with {second}")
    _names(table, inputs)
    for path, targets in kind.refers.items():
        for item in wire.values(inputs, path):
            _exists(table, cloud, targets, item)
    if kind.unique:
        mine = [wire.value(inputs, path) for path in kind.unique]
        if any(other.id != itself for other in cloud.with_inputs(kind.token, kind.unique, mine)):
            raise RefusedError(table.errors["exists"].format(what=" ".join(map(str, mine))))
    for rule in _RULES.get(kind.token, ()):
        for reason in rule(cloud, inputs, itself):
            raise RefusedError(reason)


def refuse_place(table: Table, cloud: Cloud, region: str, zone: str) -> None:
    """Raises the error of the cloud for a region or a zone that it, or the account, does not have.

    Args:
        table: the cloud.
        cloud: its account.
        region: the region of a resource; empty where it is not known yet, or has none.
        zone: its zone; empty without one.

    Raises:
        RefusedError: there is no such place.
    """
    places = cloud.account.places.get(table.cloud, table.places)
    if not region or wire.is_unknown(region):
        return
    if region not in places:
        raise RefusedError(table.errors["region"].format(region=region))
    zones = places[region]
    # A tenancy of Oracle has a prefix of its own before the name of a zone.
    if zones and zone and zone != region and zone.rpartition(":")[2] not in zones:
        raise RefusedError(table.errors["zone"].format(region=region, zone=zone, zones=", ".join(zones)))


def refuse_deletion(table: Table, cloud: Cloud, record: Record) -> None:
    """Raises the error of the cloud for the deletion of a resource that another one uses.

    Raises:
        RefusedError: it is in use.
    """
    references = [pair for kind in table.kinds.values() for targets in kind.refers.values() for pair in targets]
    named_by = {record.output(output) for target, output in references if target == record.type}
    for other in cloud.mentioning(named_by):
        kind = table.kinds.get(other.type)
        if kind is None or other.id == record.id:
            continue
        for path, targets in kind.refers.items():
            mine = [record.output(output) for target, output in targets if target == record.type]
            if any(item in mine for item in wire.values(other.inputs, path)):
                raise RefusedError(table.errors["used"].format(id=record.id, by=other.id))


def less(paths: Iterable[str], path: str, olds: Inputs, news: Inputs) -> bool:
    """Whether a path is one of those given, and its value is a smaller number than before."""
    if not any(wire.matches(path, pattern) for pattern in paths):
        return False
    before, now = wire.value(olds, path), wire.value(news, path)
    return before is not None and now is not None and not wire.is_unknown(now) and float(now) < float(before)


def refuse_change(kind: Kind, record: Record, olds: Inputs, news: Inputs) -> None:
    """Raises the error of the cloud for an update that it never makes.

    Raises:
        RefusedError: a property that is fixed, a disk that would shrink, or a stop without permission.
    """
    if reason := refusal(kind.schema, olds, news):
        raise RefusedError(reason)
    for path in wire.changed(olds, news):
        if less(kind.changes.grows, path, record.outputs, news):
            before, now = wire.value(record.outputs, path), wire.value(news, path)
            raise RefusedError(f"InvalidParameterValue: {path} {now} is smaller than {before}: a disk only grows")
    permits, stopping = kind.changes.stops_if, stops(kind, olds, news)
    if permits and stopping and not wire.value(news, permits):
        raise RefusedError(
            f"Changing {', '.join(stopping)} on a started instance requires stopping it. To acknowledge "
            f"this, please set {permits} = true in your config."
        )


def stops(kind: Kind, olds: Inputs, news: Inputs) -> list[str]:
    """The changes for which the provider stops the host."""
    paths = wire.changed(olds, news)
    return [path for path in paths if any(wire.matches(path, pattern) for pattern in kind.changes.stops)]


def _names(table: Table, inputs: Inputs) -> None:
    name = inputs.get(table.names.get("property", ""))
    if name is not None and not re.fullmatch(table.names["pattern"], str(name)):
        raise RefusedError(
            f"Invalid value for field 'resource.name': '{name}'. Must be a match of {table.names['pattern']}"
        )


def _exists(table: Table, cloud: Cloud, targets: tuple[tuple[str, str], ...], value: Any) -> None:
    target, output = targets[0]
    if target == "account":
        if not str(value).startswith(table.account.get(output, "")):
            raise RefusedError(f"'{value}' is no id of {output}")
        known = cloud.account.have.get(output)
        if known is not None and value not in {*known, *(table.images if output == "images" else ())}:
            kind = output.removesuffix("s")
            raise RefusedError(table.errors.get(kind, table.errors["missing"]).format(kind=kind, id=value))
    elif cloud.first(targets, value) is None:
        raise RefusedError(table.errors["missing"].format(kind=target.rpartition(":")[2], id=value))


def _subnet_fits(cloud: Cloud, inputs: Inputs, itself: str | None) -> Iterator[str]:
    mine = ipaddress.ip_network(inputs["cidrBlock"])
    vpc = cloud.get("aws:ec2/vpc:Vpc", inputs["vpcId"])
    if vpc and not mine.subnet_of(ipaddress.ip_network(vpc.inputs["cidrBlock"])):  # type: ignore[arg-type] # both are IPv4
        yield f"InvalidSubnet.Range: The CIDR '{mine}' is invalid."
    for other in cloud.records_of(":Subnet"):
        same = other.id != itself and other.inputs.get("vpcId") == inputs["vpcId"]
        if same and mine.overlaps(ipaddress.ip_network(other.inputs["cidrBlock"])):
            yield f"InvalidSubnet.Conflict: The CIDR '{mine}' conflicts with another subnet"


def _block_has_a_target(cloud: Cloud, inputs: Inputs, itself: str | None) -> Iterator[str]:
    block = wire.value(inputs, "instanceMarketOptions.marketType") == "capacity-block"
    target = wire.value(inputs, "capacityReservationSpecification.capacityReservationTarget.capacityReservationId")
    if block and not target:
        yield "InvalidParameterCombination: a capacity block needs a capacity reservation target"
    if block and inputs.get("placementGroup"):
        yield "InsufficientInstanceCapacity: a capacity block cannot be used in a placement group"
    bought = cloud.get("aws:ec2/capacityBlockReservation:CapacityBlockReservation", str(target)) if target else None
    starts = bought.output("startDate") if bought else None
    if itself is None and starts and dt.datetime.fromisoformat(str(starts)) > dt.datetime.now(dt.UTC):
        yield "InvalidCapacityReservationState.PendingActivation: Your Capacity Block is not active yet."


def _address_needs_a_gateway(cloud: Cloud, inputs: Inputs, _itself: str | None) -> Iterator[str]:
    """An elastic address needs an internet gateway in the network of its instance."""
    instance = cloud.get("aws:ec2/instance:Instance", str(inputs.get("instance")))
    if instance is None:
        return
    if wire.value(instance.inputs, "launchTemplate.id"):
        yield "InvalidInstanceID: There are multiple interfaces attached to instance. Please specify an interface ID"
    subnet = cloud.get("aws:ec2/subnet:Subnet", str(wire.value(instance.inputs, "subnetId")))
    vpc = subnet.inputs["vpcId"] if subnet else None
    if not any(item.inputs.get("vpcId") == vpc for item in cloud.records_of(":InternetGateway")):
        yield f"Gateway.NotAttached: Network {vpc} is not attached to any internet gateway"


def _volume_is_near(cloud: Cloud, inputs: Inputs, _itself: str | None) -> Iterator[str]:
    instance = cloud.get("aws:ec2/instance:Instance", inputs["instanceId"])
    volume = cloud.get("aws:ebs/volume:Volume", inputs["volumeId"])
    if instance and volume and instance.zone != volume.inputs["availabilityZone"]:
        yield f"InvalidVolume.ZoneMismatch: The volume '{volume.id}' is not in the zone of '{instance.id}'"


def _gpu_ends_for_maintenance(_cloud: Cloud, inputs: Inputs, _itself: str | None) -> Iterator[str]:
    scheduling = inputs.get("scheduling") or {}
    gpus = str(inputs["machineType"]).startswith(("a2-", "a3-", "a4"))
    if gpus and scheduling.get("onHostMaintenance") != "TERMINATE":
        yield "Error 400: Instances with guest accelerators do not support live migration, badRequest"
    if scheduling.get("preemptible") and scheduling.get("automaticRestart"):
        yield "Error 400: Automatic restart is not supported for preemptible instances, badRequest"


def _rules_differ(_cloud: Cloud, inputs: Inputs, _itself: str | None) -> Iterator[str]:
    seen: set[tuple[Any, Any]] = set()
    for rule in inputs.get("securityRules") or []:
        place = (rule["direction"], rule["priority"])
        if place in seen:
            yield f"SecurityRuleConflict: two rules have the priority {place[1]}"
        seen.add(place)


def _machine_and_address_share_a_zone(cloud: Cloud, inputs: Inputs, _itself: str | None) -> Iterator[str]:
    for card_id in wire.values(inputs, "networkProfile.networkInterfaces.*.id"):
        card = cloud.get("azure-native:network:NetworkInterface", card_id)
        public = card and wire.value(card.inputs, "ipConfigurations.0.publicIPAddress.id")
        address = cloud.get("azure-native:network:PublicIPAddress", str(public)) if public else None
        zones, mine = (address.inputs.get("zones") if address else None), inputs.get("zones")
        if zones and mine and zones != mine:
            yield f"ComputeResourceZoneMismatch: the address {public} is in zone {zones[0]}, the machine in {mine[0]}"


def _networks_are_apart(cloud: Cloud, inputs: Inputs, itself: str | None) -> Iterator[str]:
    if inputs.get("ipRange"):
        mine = ipaddress.ip_network(inputs["ipRange"])
        for other in cloud.records_of("digitalocean:index/vpc:Vpc"):
            taken = other.inputs.get("ipRange")
            if other.id != itself and taken and mine.overlaps(ipaddress.ip_network(taken)):
                yield "422 This range/size overlaps with another VPC network in your account"


Rule = Callable[[Cloud, Inputs, str | None], Iterator[str]]
#: Type -> rules that do not fit into a table, from memory of the clouds' documents and unverified; the rule of
#: DigitalOcean's networks is in its SDK.
_RULES: Mapping[str, tuple[Rule, ...]] = {
    "aws:ec2/subnet:Subnet": (_subnet_fits,),
    "aws:ec2/instance:Instance": (_block_has_a_target,),
    "aws:ec2/eip:Eip": (_address_needs_a_gateway,),
    "aws:ec2/volumeAttachment:VolumeAttachment": (_volume_is_near,),
    "gcp:compute/instance:Instance": (_gpu_ends_for_maintenance,),
    "azure-native:network:NetworkSecurityGroup": (_rules_differ,),
    "azure-native:compute:VirtualMachine": (_machine_and_address_share_a_zone,),
    "digitalocean:index/vpc:Vpc": (_networks_are_apart,),
}
