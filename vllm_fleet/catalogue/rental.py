"""Where a host class can be rented, and as what: the tables of ``recipes/clouds`` against a fleet's placement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.yaml_reader import Location
from vllm_fleet.catalogue.catalogue import Catalog, SizedClass
from vllm_fleet.catalogue.places import check_place
from vllm_fleet.schema.cloud import PLACEMENTS, Placement
from vllm_fleet.schema.cloud_table import CloudTable, Fabric, ImageKind, Shape
from vllm_fleet.schema.fleet import Pool

#: Keys of a placement that a gateway does not take from the pool.
_POOL_ONLY = (
    "capacity",
    "shape",
    "image",
    "disk_gib",
    "disk_iops",
    "disk_throughput_mib_s",
    "model_disk_gib",
    "model_disk_iops",
    "model_disk_throughput_mib_s",
    "local_disks",
    "public_address",
    "placement_group",
    "fabric",
    "run_hours",
    "reservation_bound",
    "first",
    # Rights are given by name, and a gateway needs none of those of the hosts behind it.
    "instance_profile",
    "service_account",
    "scopes",
    "managed_identity",
)


@dataclass(frozen=True)
class Rented:
    """How one pool's hosts, or the gateways, are rented.

    Attributes:
        table: the cloud.
        placement: where in it.
        shape: the instance type.
        image_kind: what the image must bring.
        entry: the type in the cloud's table; None for gateways.
    """

    table: CloudTable
    placement: Placement
    shape: str
    image_kind: ImageKind
    entry: Shape | None = None

    @property
    def fabric(self) -> Fabric | None:
        """The network cards for traffic between hosts; None: it has none."""
        return self.entry.fabric if self.entry else None

    @property
    def image(self) -> str:
        """The image of the cloud's table, which the instance type may set itself; the table has one."""
        own = self.table.shapes[self.shape].image if self.shape in self.table.shapes else None
        return (own or self.table.images[self.image_kind]).name


def is_rented(cloud: str) -> bool:
    """Whether a cloud's hosts are rented: not those of the lab, nor hosts that exist already."""
    return cloud in PLACEMENTS


def other_clouds(cloud: str) -> Callable[[Location], str | None]:
    """What to do about a key that the placement of a cloud does not have: it may be one of another cloud.

    Args:
        cloud: the cloud.

    Returns:
        The hint for a key path below the placement; None where no other cloud has it.
    """

    def hint(place: Location) -> str | None:
        name, above = str(place[-1]), place[:-1]
        owners = sorted(
            other
            for other, model in PLACEMENTS.items()
            if other != cloud and name in yaml_document.keys_at(model, above)
        )
        return f"it is a key of {' and '.join(owners)}, not of {cloud}: remove it" if owners else None

    return hint


def rent_pool(catalog: Catalog, name: str, spec: Pool, document: yaml_document.Document) -> Rented:
    """How a pool's hosts are rented.

    Args:
        catalog: with the cloud's table.
        name: the pool.
        spec: the pool as ``fleet.yml`` has it, with a cloud that :func:`is_rented` knows.
        document: that file, for errors.

    Raises:
        FleetError: a placement that is not one of this cloud, or a class that cannot be had there.
    """
    at = ("pools", name, "placement")
    cloud = spec.cloud
    placement = yaml_document.parse(document, PLACEMENTS[cloud], at, spec.placement, other_clouds(cloud))
    host = catalog.host_class(spec.host_class)
    table = catalog.clouds[cloud]
    _check_place(table, placement, at, document)
    try:
        shape = _shape(catalog, table, host, placement)
    except FleetError as fault:
        raise document.error(
            ("pools", name, *str(fault.key).split(".")), fault.message, fault.hint, fault.code
        ) from None
    vendor = "plain" if host.family.vendor == "cpu" else host.family.vendor
    kind = cast(ImageKind, f"{vendor}-{host.family.facts.machine or 'x86_64'}")
    if kind not in table.images and placement.image in (None, "latest"):
        raise document.error((*at, "image"), f"{cloud} has no image for {host.id}", "give the id of your own image")
    return Rented(table, placement, shape, kind, table.shapes[shape])


def rent_gateways(
    catalog: Catalog, cloud: str, placement: Mapping[str, Any], own: Mapping[str, Any], document: yaml_document.Document
) -> Rented:
    """How the gateways are rented: beside the first pool, unless the fleet says otherwise.

    Args:
        catalog: with the cloud's table.
        cloud: one that :func:`is_rented` knows.
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
        for key in ("network", "existing"):
            beside.pop(key, None)  # they are properties of the first pool's network
    merged = {**beside, **own}
    if isinstance(beside.get("existing"), dict) and isinstance(own.get("existing"), dict):
        merged["existing"] = {**beside["existing"], **own["existing"]}
    # In a network of the account, only its owner knows whether a subnet is open to the internet.
    merged.setdefault("public_address", not merged.get("existing"))
    at = ("gateway", "placement")
    own_placement = yaml_document.parse(document, PLACEMENTS[cloud], at, merged, other_clouds(cloud))
    table = catalog.clouds[cloud]
    _check_place(table, own_placement, at, document)
    return Rented(table, own_placement, own_placement.shape or table.gateway_shape, "plain-x86_64")


def _check_place(
    table: CloudTable, placement: Placement, at: tuple[str, ...], document: yaml_document.Document
) -> None:
    try:
        check_place(table, placement)
    except FleetError as fault:
        raise document.error((*at, str(fault.key)), fault.message, fault.hint, fault.code) from None


def offers(catalog: Catalog, host_class: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Where a class can be had: cloud, instance type and capacity kinds."""
    for cloud, table in sorted(catalog.clouds.items()):
        for name, shape in table.shapes.items():
            if shape.host_class == host_class:
                yield cloud, name, tuple(shape.capacity)


def _shape(catalog: Catalog, table: CloudTable, host: SizedClass, placement: Placement) -> str:
    """The instance type of a pool; errors name the key below the pool."""
    mine = {key: shape for key, shape in table.shapes.items() if shape.host_class == host.id}
    if not mine:
        where = [f"{cloud} ({shape})" for cloud, shape, _ in offers(catalog, host.id)]
        places = ", ".join(where) if where else "no cloud in recipes/clouds; use 'static' hosts"
        raise FleetError(
            f"{table.name} has no {host.id}", f"available at: {places}", key="host_class", code=ErrorCode.REFUSED
        )
    if placement.shape and placement.shape not in mine:
        raise FleetError(
            f"{placement.shape!r} is not an instance type for {host.id} at {table.name}",
            f"these are: {', '.join(mine)}",
            key="placement.shape",
        )
    kind = placement.capacity.kind
    for key in [placement.shape] if placement.shape else mine:
        if kind not in mine[key].capacity:
            continue
        if placement.capacity.purchase and not mine[key].can_be_bought:
            raise FleetError(
                f"the stack cannot buy a block of {key}, which is offered as a part of larger machines",
                "buy it with the cloud's own tools, and give its 'id' in place of 'purchase'",
                key="placement.capacity.purchase",
                code=ErrorCode.REFUSED,
            )
        return key
    kinds = "; ".join(f"{key}: {', '.join(mine[key].capacity)}" for key in mine)
    raise FleetError(f"{host.id} is not available as {kind}", f"it comes as {kinds}", key="placement.capacity.kind")
