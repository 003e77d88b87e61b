"""The functions of the clouds, by token: lookups of images, capacity blocks, regions, networks and accounts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from lab.rehearsal.cloud import NO_SUBSCRIPTION, Cloud, RefusedError
from lab.rehearsal.table import Table

Answer = dict[str, Any]


def answer(table: Table, cloud: Cloud, token: str, arguments: Mapping[str, Any], project: str) -> Answer:
    """The outputs of a function.

    Raises:
        RefusedError: the cloud does not have it, or the function is not emulated.
    """
    if token not in _FUNCTIONS:
        raise RefusedError(f"this rehearsal knows no function {token}")
    subscription = cloud.account.ids.get("azure", NO_SUBSCRIPTION)
    return _FUNCTIONS[token](table, cloud, {"project": project, "subscription": subscription, **arguments})


def _digits(cloud: Cloud, name: str) -> str:
    """Seventeen digits that change with a newer image."""
    version = cloud.account.versions.get(name, 0)
    return hashlib.sha256(f"{name} {version}".encode()).hexdigest()[:17]


def _have_image(cloud: Cloud, image: str) -> None:
    if image not in cloud.account.have.setdefault("images", []):
        cloud.account.have["images"].append(image)


def _parameter(table: Table, cloud: Cloud, arguments: Mapping[str, Any]) -> Answer:
    name = str(arguments["name"])
    if not name.startswith("/aws/service/"):
        raise RefusedError(f"ParameterNotFound: {name}")
    version = cloud.account.versions.get(name, 0)
    value = str(table.image["value"]).format(hex17=_digits(cloud, name))
    _have_image(cloud, value)
    return {"id": name, "name": name, "type": "String", "value": value, "version": version + 1}


def _offering(_table: Table, cloud: Cloud, arguments: Mapping[str, Any]) -> Answer:
    if not cloud.account.offerings:
        raise RefusedError(f"no capacity block of {arguments['instanceType']} is offered")
    offering, fee = cloud.account.offerings[0]
    zone = cloud.account.block["block_zone"]
    found = {"capacityBlockOfferingId": offering, "upfrontFee": fee, "availabilityZone": zone}
    return {"id": offering, **found, **arguments}


def _image(table: Table, cloud: Cloud, arguments: Mapping[str, Any]) -> Answer:
    family = str(arguments["family"])
    name = f"{arguments['project']}/{family}"
    if name not in table.images:
        missing = f"projects/{arguments['project']}/global/images/family/{family}"
        raise RefusedError(table.errors["missing"].format(kind="image", id=missing))
    version = cloud.account.versions.get(family, 0)
    link = str(table.image["selfLink"]).format(project=arguments["project"], family=family, version=version)
    _have_image(cloud, link)
    return {"id": link, "name": link.rpartition("/")[2], "selfLink": link, "family": family}


def _images(_table: Table, cloud: Cloud, arguments: Mapping[str, Any]) -> Answer:
    name = f"{arguments['operatingSystem']}/{arguments['operatingSystemVersion']}"
    image = f"ocid1.image.oc1..{_digits(cloud, name)}"
    _have_image(cloud, image)
    return {"id": name, "images": [{"id": image, "displayName": name}], **arguments}


def _sizes(table: Table, cloud: Cloud, arguments: Mapping[str, Any]) -> Answer:
    (wanted,) = [slug for filter_ in arguments["filters"] if filter_["key"] == "slug" for slug in filter_["values"]]
    if wanted not in table.shapes:
        return {"id": wanted, "sizes": []}
    regions = cloud.account.regions.get(wanted, ["nyc1", "nyc2", "nyc3", "tor1", "ams3", "sfo3", "ric1", "mem1"])
    return {"id": wanted, "sizes": [{"slug": wanted, "available": bool(regions), "regions": regions}]}


def _shown(kind: str, id_: str) -> Function:
    """A lookup of a resource by its id: what the cloud has of it."""

    def look_up(table: Table, cloud: Cloud, arguments: Mapping[str, Any]) -> Answer:
        wanted = id_.format(**arguments)
        record = cloud.get(kind, wanted)
        if record is None:
            raise RefusedError(table.errors["missing"].format(kind=kind.rpartition(":")[2], id=wanted))
        return {**record.inputs, **record.outputs, "id": record.id, **arguments}

    return look_up


def _tenancy(_table: Table, cloud: Cloud, arguments: Mapping[str, Any]) -> Answer:
    wanted = str(arguments["tenancyId"])
    if cloud.account.ids.get("oci", wanted) != wanted:
        raise RefusedError("404-NotAuthorizedOrNotFound, Authorization failed or requested resource not found.")
    return {"id": wanted, "name": "rehearsal", **arguments}


Function = Callable[[Table, Cloud, Mapping[str, Any]], Answer]
_AZURE_NETWORK = "/subscriptions/{subscription}/resourceGroups/{resourceGroupName}/providers/Microsoft.Network"
_FUNCTIONS: Mapping[str, Function] = {
    "aws:ssm/getParameter:getParameter": _parameter,
    "aws:ec2/getCapacityBlockOffering:getCapacityBlockOffering": _offering,
    "gcp:compute/getImage:getImage": _image,
    "oci:Core/getImages:getImages": _images,
    "digitalocean:index/getSizes:getSizes": _sizes,
    "aws:ec2/getSubnet:getSubnet": _shown("aws:ec2/subnet:Subnet", "{id}"),
    "aws:ec2/getSecurityGroup:getSecurityGroup": _shown("aws:ec2/securityGroup:SecurityGroup", "{id}"),
    "gcp:compute/getSubnetwork:getSubnetwork": _shown(
        "gcp:compute/subnetwork:Subnetwork", "projects/{project}/regions/{region}/subnetworks/{name}"
    ),
    "azure-native:network:getVirtualNetwork": _shown(
        "azure-native:network:VirtualNetwork", f"{_AZURE_NETWORK}/virtualNetworks/{{virtualNetworkName}}"
    ),
    "azure-native:network:getSubnet": _shown(
        "azure-native:network:Subnet", f"{_AZURE_NETWORK}/virtualNetworks/{{virtualNetworkName}}/subnets/{{subnetName}}"
    ),
    "oci:Core/getSubnet:getSubnet": _shown("oci:Core/subnet:Subnet", "{subnetId}"),
    "oci:Core/getNetworkSecurityGroup:getNetworkSecurityGroup": _shown(
        "oci:Core/networkSecurityGroup:NetworkSecurityGroup", "{networkSecurityGroupId}"
    ),
    "oci:Identity/getTenancy:getTenancy": _tenancy,
    "digitalocean:index/getVpc:getVpc": _shown("digitalocean:index/vpc:Vpc", "{id}"),
}
