"""Which image a host of Azure starts from."""

from __future__ import annotations

from infra.images import named_image
from vllm_fleet.catalogue.rental import Rented


def image_reference(where: Rented) -> dict[str, str]:
    """The fleet's own image by its id, else the newest of the table's ``publisher:offer:sku``, which Azure resolves.

    Args:
        where: how the host is rented.
    """
    if named := named_image(where):
        return {"id": named}
    publisher, offer, sku = where.table.images[where.image_kind].split(":")
    return {"publisher": publisher, "offer": offer, "sku": sku, "version": "latest"}
