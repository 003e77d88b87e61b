"""How a host of Azure is got: on demand, spot, or from a reservation."""

from __future__ import annotations

from typing import Any

from vllm_fleet.schema.cloud import AzurePlacement


def capacity(placement: AzurePlacement) -> dict[str, Any]:
    """The arguments of a virtual machine for its capacity. A maximum price of -1 is the price on demand.

    Args:
        placement: where, and how it is got.
    """
    if placement.capacity.kind == "spot":
        return {"priority": "Spot", "eviction_policy": "Deallocate", "billing_profile": {"max_price": -1}}
    if placement.capacity.kind == "reservation":
        return {"capacity_reservation": {"capacity_reservation_group": {"id": placement.capacity.id}}}
    return {}
