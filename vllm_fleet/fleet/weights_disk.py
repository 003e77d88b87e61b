"""Whether a rented host has room for the weights of its model, before anything is rented."""

from __future__ import annotations

from vllm_fleet.base import yaml_document
from vllm_fleet.catalogue.rental import Rented

#: A new revision is complete on the disk before the old one goes.
COPIES = 2


def check(rented: Rented, model: str, weights_gib: float, document: yaml_document.Document, pool: str) -> None:
    """Refuses a placement whose disk cannot hold the weights twice.

    Disks inside the host are not judged: they are large, and their size is the instance type's. So are the disks of a
    cloud whose sizes come with their own.

    Args:
        rented: how the pool's hosts are rented.
        model: what they serve.
        weights_gib: its weights.
        document: the fleet's file, for the error.
        pool: the pool.

    Raises:
        FleetError: the disk is too small.
    """
    placement = rented.placement
    if placement.model_disk_gib:
        key, size = "model_disk_gib", placement.model_disk_gib
    elif rented.local_disks or rented.table.name == "digitalocean":
        return
    else:
        key, size = "disk_gib", placement.disk_gib
    need = COPIES * weights_gib
    if size < need:
        raise document.error(
            ("pools", pool, "placement", key),
            f"{size} GiB cannot hold the weights of {model} twice (2 x {weights_gib:.1f} GiB)",
            f"give at least {need:.0f} GiB",
            "refused",
        )
