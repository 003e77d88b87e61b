"""Which image a host of Azure starts from."""

from __future__ import annotations

from infra.images import named_image
from vllm_fleet.catalogue.rental import Rented


def image_reference(where: Rented) -> dict[str, str]:
    """The fleet's image by its id or as ``publisher:offer:sku:version``, else the newest of the cloud's table.

    Args:
        where: how the host is rented.
    """
    named = named_image(where) or f"{where.image}:latest"
    if named.startswith("/"):
        return {"id": named}
    publisher, offer, sku, version = named.split(":")
    return {"publisher": publisher, "offer": offer, "sku": sku, "version": version}
