"""Where a host class can be rented, and as what: the tables of ``recipes/clouds`` against a fleet's placement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_fleet.base import yaml_document
from vllm_fleet.catalogue.catalogue import Catalog, SizedClass
from vllm_fleet.schema.cloud import PLACEMENTS, CloudTable, ImageKind, Placement

#: What a placement says of a pool's hosts and not of a gateway beside them.
_POOL_ONLY = (
    "capacity",
    "shape",
    "image",
    "disk_gib",
    "model_disk_gib",
    "public_address",
    "placement_group",
    "fabric",
    "run_hours",
    "first",
)


@dataclass(frozen=True)
class Rented:
    """How one pool's hosts, or the gateways, are rented.

    Attributes:
        table: the cloud.
        placement: where in it.
        shape: the instance type.
        image_kind: what the image must bring.
        fabric_cards: network cards with an interface of their own.
        local_disks: disks inside the host.
    """

    table: CloudTable
    placement: Placement
    shape: str
    image_kind: ImageKind
    fabric_cards: int = 0
    local_disks: int = 0


def rented(cloud: str) -> bool:
    """Whether a cloud's hosts are rented: not those of the lab, nor hosts that exist already."""
    return cloud in PLACEMENTS


def pool(
    catalog: Catalog,
    cloud: str,
    host: SizedClass,
    placement: Mapping[str, Any],
    document: yaml_document.Document,
    name: str,
) -> Rented:
    """How a pool's hosts are rented.

    Args:
        catalog: with the cloud's table.
        cloud: one that :func:`rented` knows.
        host: the pool's class.
        placement: as ``fleet.yml`` has it.
        document: that file, for errors.
        name: the pool.

    Raises:
        FleetError: a placement that is not one of this cloud, or a class that cannot be had there.
    """
    at = ("pools", name, "placement")
    found = yaml_document.parse(document, PLACEMENTS[cloud], at, placement)
    table = catalog.clouds[cloud]
    shape = _shape(catalog, table, host, found, document, name)
    vendor = "plain" if host.family.vendor == "cpu" else host.family.vendor
    kind = f"{vendor}-{host.family.facts.machine or 'x86_64'}"
    if kind not in table.images and found.image in (None, "latest"):
        raise document.error((*at, "image"), f"{cloud} has no image for {host.id}", "give the id of your own image")
    entry = table.shapes[shape]
    return Rented(table, found, shape, kind, entry.fabric_cards, entry.local_disks)  # type: ignore[arg-type]


def gateways(
    catalog: Catalog, cloud: str, placement: Mapping[str, Any], own: Mapping[str, Any], document: yaml_document.Document
) -> Rented:
    """How the gateways are rented: beside the first pool, unless the fleet says otherwise.

    Args:
        catalog: with the cloud's table.
        cloud: one that :func:`rented` knows.
        placement: that of the first pool.
        own: that of the gateway.
        document: the fleet's file, for errors.

    Raises:
        FleetError: a placement that is not one of this cloud.
    """
    beside = {key: value for key, value in placement.items() if key not in _POOL_ONLY}
    if "zone" in own or "zones" in own:
        beside = {key: value for key, value in beside.items() if key not in ("zone", "zones")}
    if any(key in own and own[key] != placement.get(key) for key in ("region", "project", "compartment")):
        beside.pop("network", None)  # that is of the first pool's network
    at = ("gateway", "placement") if own else ("gateway",)
    found = yaml_document.parse(document, PLACEMENTS[cloud], at, {"public_address": True, **beside, **own})
    table = catalog.clouds[cloud]
    return Rented(table, found, found.shape or table.gateway_shape, "plain-x86_64")


def offers(catalog: Catalog, host_class: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Where a class can be had: cloud, instance type and capacity kinds."""
    for cloud, table in sorted(catalog.clouds.items()):
        for name, shape in table.shapes.items():
            if shape.host_class == host_class:
                yield cloud, name, tuple(shape.capacity)


def _shape(
    catalog: Catalog, table: CloudTable, host: SizedClass, found: Placement, document: yaml_document.Document, name: str
) -> str:
    at = ("pools", name, "placement")
    mine = {key: shape for key, shape in table.shapes.items() if shape.host_class == host.id}
    if not mine:
        where = [f"{cloud} ({shape})" for cloud, shape, _ in offers(catalog, host.id)]
        told = ", ".join(where) if where else "no cloud of recipes/clouds; as 'static' hosts of your own"
        raise document.error(
            ("pools", name, "host_class"), f"{table.name} has no {host.id}", f"it can be had at: {told}", "refused"
        )
    if found.shape and found.shape not in mine:
        raise document.error(
            (*at, "shape"), f"{found.shape!r} is no {host.id} of {table.name}", f"these are: {', '.join(mine)}"
        )
    kind = found.capacity.kind
    for key in [found.shape] if found.shape else mine:
        if kind in mine[key].capacity:
            return key
    told = "; ".join(f"{key}: {', '.join(mine[key].capacity)}" for key in mine)
    raise document.error((*at, "capacity", "kind"), f"{host.id} cannot be had as {kind}", f"it comes as {told}")
