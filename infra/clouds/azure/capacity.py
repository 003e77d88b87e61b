"""The capacity of a host of Azure: on demand, spot, or a reservation."""

from __future__ import annotations

from typing import Any

from vllm_fleet.schema.cloud import AzurePlacement


def capacity(placement: AzurePlacement) -> dict[str, Any]:
    """The arguments of a virtual machine for its capacity. A maximum price of -1 is the price on demand.

    An evicted host is deleted: a refresh sees that it is gone, and the same run makes it again. One that is only
    deallocated looks the same to Azure's provider as one that runs.

    Args:
        placement: the placement with its capacity.
    """
    if placement.capacity.kind == "spot":
        return {"priority": "Spot", "eviction_policy": "Delete", "billing_profile": {"max_price": -1}}
    if placement.capacity.kind == "reservation":
        return {"capacity_reservation": {"capacity_reservation_group": {"id": placement.capacity.id}}}
    return {}
