"""The capacity blocks that the stack buys: the purchase, and what later runs know of it.

Two runs make the hosts of a bought block. The first one buys it, notes in ``stack.json`` what it bought, and says when
the block starts: AWS refuses instances before that. The first run after the start makes the hosts. Once ``stack.json``
in the state has the block, its resource leaves the state, and the block lives on: AWS's provider forgets a block that
has ended, and Pulumi would plan to buy it again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import pulumi
from pydantic import ValidationError

from infra.sdk import aws
from infra.state import State
from infra.tries import interrupted
from vllm_fleet.base.errors import FleetError
from vllm_fleet.schema.capacity_block import CapacityBlock, parse_time
from vllm_fleet.schema.cloud import Purchase


class Blocks:
    """The blocks of one fleet.

    Attributes:
        now: when this run began.
        ordered: pool -> the block that was bought for it, and that ``stack.json`` in the state does not have yet.
    """

    def __init__(self, state: State) -> None:
        """The blocks that a stack has.

        Args:
            state: the stack before this run.

        Raises:
            FleetError: its ``stack.json`` has a block that cannot be read.
        """
        try:
            self._known = {pool: CapacityBlock.model_validate(data) for pool, data in state.blocks.items()}
        except ValidationError as wrong:
            raise FleetError(
                f"stack.json in the state of the stack has capacity blocks that cannot be read: {wrong}",
                "correct its blocks: pulumi stack export, then pulumi stack import",
            ) from None
        self._state = state
        self.now = dt.datetime.now(dt.UTC)
        self.ordered: dict[str, pulumi.Output[dict[str, str]]] = {}

    def bought(self, pool: str, purchase: Purchase) -> CapacityBlock | None:
        """The block of a pool, if its offering was bought in an earlier run."""
        block = self._known.get(pool)
        return block if block and block.offering == purchase.offering_id else None

    def is_interrupted(self, resource: str) -> bool:
        """Whether a purchase was interrupted, so that the block may be bought."""
        return resource in self._state.begun


def buy(name: str, pool: str, order: Order, blocks: Blocks, opts: pulumi.ResourceOptions) -> None:
    """Buys a block, unless its resource is in the state, and notes it. The purchase cannot be refunded.

    Args:
        name: the name of its resource, without what it is.
        pool: the pool that it is for.
        order: what is bought.
        blocks: the blocks of the fleet.
        opts: parent and provider.
    """
    resource = f"{name}-block"

    async def before(_args: pulumi.ResourceHookArgs) -> None:
        if blocks.is_interrupted(resource):
            raise interrupted(pulumi.get_stack(), [resource], [f"the capacity block {resource}"])
        # Looked up only before a purchase: a block that is sold is no longer offered.
        found = aws.ec2.get_capacity_block_offering_output(
            **order.search(), opts=pulumi.InvokeOptions(parent=opts.parent, provider=opts.provider)
        )
        offer = await pulumi.Output.all(
            found.capacity_block_offering_id, found.upfront_fee, found.availability_zone
        ).future()
        if offer is None:
            raise pulumi.RunError("AWS returned no capacity block offering: nothing was bought")
        order.accept(*(str(part) for part in offer))

    check_offer = pulumi.ResourceHook(f"{name}-offer", before, pulumi.ResourceHookOptions(on_dry_run=True))
    block = aws.ec2.CapacityBlockReservation(
        resource,
        capacity_block_offering_id=order.purchase.offering_id,
        instance_platform="Linux/UNIX",
        opts=pulumi.ResourceOptions.merge(
            opts,
            pulumi.ResourceOptions(
                # The block is paid for: that it leaves the state, in the next run, does not end it.
                retain_on_delete=True,
                ignore_changes=["capacityBlockOfferingId"],
                hooks=pulumi.ResourceHookBinding(before_create=[check_offer]),
            ),
        ),
    )

    def note(values: Sequence[Any]) -> dict[str, str]:
        id_, zone, starts, ends = (str(value) for value in values)
        pulumi.warn(
            f"{pool}: the capacity block {id_} is bought and starts at {starts}: its hosts are made by the first "
            f"'pulumi up --stack {pulumi.get_stack()}' after that"
        )
        return {"offering": order.purchase.offering_id, "id": id_, "zone": zone, "starts": starts, "ends": ends}

    parts = pulumi.Output.all(block.id, block.availability_zone, block.start_date, block.end_date)
    blocks.ordered[pool] = parts.apply(note)


class Order:
    """What a pool orders: an offering for so many instances of a type, in the pool's zone."""

    def __init__(self, purchase: Purchase, shape: str, count: int, zone: str) -> None:
        self.purchase = purchase
        self._shape, self._count, self._zone = shape, count, zone

    def search(self) -> dict[str, Any]:
        """The arguments with which AWS finds the offering."""
        purchase = self.purchase
        words: dict[str, Any] = {
            "capacity_duration_hours": purchase.duration_hours,
            "instance_count": self._count,
            "instance_type": self._shape,
        }
        if purchase.starts:
            # Of several offerings the provider reports an error; these two leave the one that the fleet means.
            ends = parse_time(purchase.starts) + dt.timedelta(hours=purchase.duration_hours)
            words |= {"start_date_range": purchase.starts, "end_date_range": f"{ends:%Y-%m-%dT%H:%M:%SZ}"}
        return words

    def accept(self, offering: str, fee: str, zone: str) -> None:
        """Checks an offering against the id, the zone and the highest price that the fleet accepts.

        Raises:
            pulumi.RunError: it is another one, it is elsewhere, or it costs more.
        """
        purchase = self.purchase
        if offering != purchase.offering_id:
            raise pulumi.RunError(
                f"the capacity block that AWS offers now is {offering} for {fee} USD, and the fleet accepts "
                f"{purchase.offering_id}: nothing was bought (check the offering, then correct purchase.offering_id)"
            )
        if zone != self._zone:
            raise pulumi.RunError(
                f"the capacity block {offering} is in {zone}, and the pool is in {self._zone}: nothing was bought "
                "(correct the pool's zone, or order an offering in that zone)"
            )
        if float(fee) > purchase.accept_cost_usd:
            raise pulumi.RunError(
                f"the capacity block {offering} costs {fee} USD, and the fleet accepts {purchase.accept_cost_usd:g} "
                "USD: nothing was bought (correct purchase.accept_cost_usd)"
            )
