"""The capacity of a pool: on demand, spot, a reservation, or a capacity block, which this module can buy.

Creating the block resource is the purchase, and it cannot be refunded. So the fleet must name the offering and the
highest price.
"""

from __future__ import annotations

from typing import Any

import pulumi

from infra.hosts import placed, rented
from infra.sdk import aws
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import AwsPlacement, Purchase


class Capacity:
    """Market, reservation and placement group of the hosts of one pool."""

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

    @property
    def unread(self) -> list[str]:
        """The arguments that the provider does not read from AWS: to give them again would be a change.

        Source: ``resourceInstanceFlatten`` in the provider's ``ec2_instance.go`` reads the market of spot hosts alone.
        """
        return ["instanceMarketOptions"] if self._kind == "capacity-block" else []

    def arguments(self) -> dict[str, Any]:
        """The arguments of an instance for its capacity."""
        arguments: dict[str, Any] = {}
        if self._kind == "spot":
            spot = {"spot_instance_type": "one-time", "instance_interruption_behavior": "terminate"}
            arguments["instance_market_options"] = {"market_type": "spot", "spot_options": spot}
        if self._kind == "capacity-block":
            arguments["instance_market_options"] = {"market_type": "capacity-block"}
        if self._id is not None:
            arguments["capacity_reservation_specification"] = {
                "capacity_reservation_target": {"capacity_reservation_id": self._id}
            }
        if self._group is not None:
            arguments["placement_group"] = self._group
        return arguments

    def _buy(self, purchase: Purchase, shape: str, count: int) -> pulumi.Output[str]:
        async def before(_args: pulumi.ResourceHookArgs) -> None:
            # Looked up only before a purchase: a block that is sold is no longer offered.
            offering = aws.ec2.get_capacity_block_offering_output(
                capacity_duration_hours=purchase.duration_hours,
                instance_count=count,
                instance_type=shape,
                opts=pulumi.InvokeOptions(parent=self._opts.parent, provider=self._opts.provider),
            )
            offer = await pulumi.Output.all(offering.capacity_block_offering_id, offering.upfront_fee).future()
            if offer is None:
                raise pulumi.RunError("AWS returned no capacity block offering: nothing was bought")
            accept(purchase, str(offer[0]), str(offer[1]))

        check_offer = pulumi.ResourceHook(f"{self._name}-offer", before, pulumi.ResourceHookOptions(on_dry_run=True))
        block = aws.ec2.CapacityBlockReservation(
            f"{self._name}-block",
            capacity_block_offering_id=purchase.offering_id,
            instance_platform="Linux/UNIX",
            opts=pulumi.ResourceOptions.merge(
                self._opts,
                # The block is paid for, so no change of the stack may end it; another offering is another purchase.
                pulumi.ResourceOptions(
                    protect=True,
                    retain_on_delete=True,
                    ignore_changes=["capacityBlockOfferingId"],
                    hooks=pulumi.ResourceHookBinding(before_create=[check_offer]),
                ),
            ),
        )
        return block.id


def accept(purchase: Purchase, offering: str, fee: str) -> None:
    """Checks an offering against the id and the highest price that the fleet accepts.

    Raises:
        pulumi.RunError: the offering has another id, or costs more.
    """
    if offering != purchase.offering_id:
        raise pulumi.RunError(
            f"the capacity block that AWS offers now is {offering} for {fee} USD, and the fleet accepts "
            f"{purchase.offering_id}: nothing was bought (check the offering, then correct purchase.offering_id)"
        )
    if float(fee) > purchase.accept_cost_usd:
        raise pulumi.RunError(
            f"the capacity block {offering} costs {fee} USD, and the fleet accepts {purchase.accept_cost_usd:g} USD: "
            "nothing was bought (correct purchase.accept_cost_usd)"
        )
