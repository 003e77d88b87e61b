"""How the hosts of a pool are got: on demand, spot, from a reservation or a capacity block, which may be bought here.

A block is bought only where the fleet names the offering and the price that it accepts: making the resource is the
purchase, and nothing gives the money back.
"""

from __future__ import annotations

from typing import Any

import pulumi

from infra.hosts import placed, rented
from infra.sdk import aws
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import AwsPlacement, Purchase


class Capacity:
    """What the hosts of one pool have in common: their market, their reservation, their placement group."""

    def __init__(self, name: str, hosts: tuple[HostPlan, ...], opts: pulumi.ResourceOptions) -> None:
        self._name = name
        self._opts = opts
        placement = placed(hosts[0], AwsPlacement)
        capacity = placement.capacity
        self._kind = capacity.kind
        self._id: pulumi.Input[str] | None = capacity.id
        if capacity.purchase:
            self._id = self._buy(capacity.purchase, rented(hosts[0]).shape, len(hosts))
        self._group = None
        if placement.placement_group:
            self._group = aws.ec2.PlacementGroup(name, name=name, strategy="cluster", opts=opts).name

    def arguments(self) -> dict[str, Any]:
        """What it adds to an instance."""
        found: dict[str, Any] = {}
        if self._kind == "spot":
            spot = {"spot_instance_type": "one-time", "instance_interruption_behavior": "terminate"}
            found["instance_market_options"] = {"market_type": "spot", "spot_options": spot}
        if self._kind == "capacity-block":
            found["instance_market_options"] = {"market_type": "capacity-block"}
        if self._id is not None:
            found["capacity_reservation_specification"] = {
                "capacity_reservation_target": {"capacity_reservation_id": self._id}
            }
        if self._group is not None:
            found["placement_group"] = self._group
        return found

    def _buy(self, purchase: Purchase, shape: str, count: int) -> pulumi.Output[str]:
        async def before(_args: pulumi.ResourceHookArgs) -> None:
            # Asked only when a block is about to be bought: one that is sold is not on offer any more.
            offering = aws.ec2.get_capacity_block_offering_output(
                capacity_duration_hours=purchase.duration_hours,
                instance_count=count,
                instance_type=shape,
                opts=pulumi.InvokeOptions(parent=self._opts.parent, provider=self._opts.provider),
            )
            found = await pulumi.Output.all(offering.capacity_block_offering_id, offering.upfront_fee).future()
            if found is None:
                raise pulumi.RunError("AWS does not say what it offers: nothing was bought")
            accept(purchase, str(found[0]), str(found[1]))

        look = pulumi.ResourceHook(f"{self._name}-offer", before, pulumi.ResourceHookOptions(on_dry_run=True))
        block = aws.ec2.CapacityBlockReservation(
            f"{self._name}-block",
            capacity_block_offering_id=purchase.offering_id,
            instance_platform="Linux/UNIX",
            opts=pulumi.ResourceOptions.merge(
                self._opts,
                # What is paid for stays bought, whatever happens to the stack; another offering is another order.
                pulumi.ResourceOptions(
                    protect=True,
                    retain_on_delete=True,
                    ignore_changes=["capacityBlockOfferingId"],
                    hooks=pulumi.ResourceHookBinding(before_create=[look]),
                ),
            ),
        )
        return block.id


def accept(purchase: Purchase, offering: str, fee: str) -> None:
    """Says whether an offering is the one that the fleet accepts, at a price that it accepts.

    Raises:
        pulumi.RunError: it is not.
    """
    if offering != purchase.offering_id:
        raise pulumi.RunError(
            f"the capacity block that AWS offers now is {offering} for {fee} USD, and the fleet accepts "
            f"{purchase.offering_id}: nothing was bought (look at the offer, then correct purchase.offering_id)"
        )
    if float(fee) > purchase.accept_cost_usd:
        raise pulumi.RunError(
            f"the capacity block {offering} costs {fee} USD, and the fleet accepts {purchase.accept_cost_usd:g} USD: "
            "nothing was bought (correct purchase.accept_cost_usd)"
        )
