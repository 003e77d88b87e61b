"""The disk of a rented host that the weights land on: which it is, and whether it has room for them.

The one decision of the plan: ``check`` judges this disk, the inventory names it to the role model_store, which puts the
weights there or fails, and ``plan`` says how long the first copy takes on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue.rental import Rented

#: Keys of a placement about the disks of weights.
_SERVING_ONLY = ("model_disk_gib", "model_disk_iops", "model_disk_throughput_mib_s", "local_disks")
#: A new revision is complete on the disk before the old one goes.
COPIES = 2

DiskKind = Literal["volume", "local", "scratch", "root"]


@dataclass(frozen=True)
class WeightsDisk:
    """The disk that the weights of a host are on.

    Attributes:
        kind: the network disk for models, the NVMe disks inside the host, the disk that the cloud has made with a file
            system, or the disk of the system.
        size_gib: its size; None where it is not known.
        count: how many disks inside the host; 0 for all other kinds.
        key: the key of the placement that decides its size.
    """

    kind: DiskKind
    size_gib: int | None
    count: int
    key: str

    @property
    def name(self) -> str:
        """The disk in words."""
        return {
            "volume": "the disk for models",
            "local": "the disks inside the host",
            "scratch": "the scratch disk",
            "root": "the root disk",
        }[self.kind]


def find(rented: Rented) -> WeightsDisk:
    """The disk that the weights of a rented host are on.

    A disk that the fleet orders for them comes first: it is paid for nothing else, and outlives a stop of the host.
    Then come those that the host brings, and last its root disk.

    Args:
        rented: how the host is rented.
    """
    placement, entry = rented.placement, rented.entry
    if placement.model_disk_gib:
        return WeightsDisk("volume", placement.model_disk_gib, 0, "model_disk_gib")
    if entry and entry.local_disks and placement.local_disks:
        size = entry.local_disk_gib * entry.local_disks if entry.local_disk_gib else None
        return WeightsDisk("local", size, entry.local_disks, "local_disks")
    if entry and entry.scratch_gib and placement.local_disks:
        return WeightsDisk("scratch", entry.scratch_gib, 0, "local_disks")
    size = None if rented.table.root_disk_is_the_type_s else placement.disk_gib
    return WeightsDisk("root", size, 0, "disk_gib")


def check(rented: Rented, model: str, weights_gib: float, document: yaml_document.Document, pool: str) -> None:
    """Refuses a placement whose disk cannot hold the weights twice. A disk of unknown size is not judged.

    Args:
        rented: how the pool's hosts are rented.
        model: what they serve.
        weights_gib: its weights.
        document: the fleet's file, for the error.
        pool: the pool.

    Raises:
        FleetError: the disk is too small.
    """
    disk = find(rented)
    need = COPIES * weights_gib
    if disk.size_gib is None or disk.size_gib >= need:
        return
    raise document.error(
        ("pools", pool, "placement", disk.key),
        f"{disk.size_gib} GiB cannot hold the weights of {model} twice (2 x {weights_gib:.1f} GiB): they are on "
        f"{disk.name}",
        f"give at least {need:.0f} GiB" if disk.kind != "local" else "give a disk of its own: 'model_disk_gib'",
        ErrorCode.REFUSED,
    )


def gateway_errors(placement: Mapping[str, Any], document: yaml_document.Document) -> Iterator[FleetError]:
    """Disks for weights that a fleet orders for its gateways, where nothing would use them.

    Args:
        placement: that of the gateway, as ``fleet.yml`` has it.
        document: the fleet's file, for the errors.
    """
    for key in _SERVING_ONLY:
        if placement.get(key):
            yield document.error(
                ("gateway", "placement", key),
                "is for hosts that serve: a gateway has no weights, and a mirror on it is on its root disk",
                "remove it; 'disk_gib' gives a mirror more room",
            )
