"""The capacity blocks that the stack buys: the purchase, and ``blocks.json``, from which later runs know them.

Two runs make the hosts of a bought block. The first one buys it, writes down what it bought, and says when the block
starts: AWS refuses instances before that. The first run after the start makes the hosts. The block leaves Pulumi's
state then, and lives on: AWS's provider forgets a block that has ended, and Pulumi would plan to buy it again.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pulumi

from infra.sdk import aws
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.fleet import blocks_file
from vllm_fleet.fleet.blocks_file import Block
from vllm_fleet.schema.cloud import Purchase


class Blocks:
    """The blocks of one fleet.

    Attributes:
        now: when this run began.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / blocks_file.FILE
        self._known = blocks_file.load(directory)
        self.now = dt.datetime.now(dt.UTC)

    def bought(self, pool: str, purchase: Purchase) -> Block | None:
        """The block of a pool, if its offering was bought in an earlier run."""
        block = self._known.get(pool)
        return block if block and block.offering == purchase.offering_id else None

    def note(self, pool: str, block: Block) -> None:
        """Writes down what was bought for a pool."""
        self._known[pool] = block
        known = {name: each.model_dump() for name, each in sorted(self._known.items())}
        write_atomically(self._file, json.dumps(known, indent=2) + "\n")


def buy(name: str, pool: str, order: Order, blocks: Blocks, opts: pulumi.ResourceOptions) -> None:
    """Buys a block, and writes it down. Creating the resource is the purchase, which cannot be refunded.

    Args:
        name: the name of its resource, without what it is.
        pool: the pool that it is for.
        order: what is bought.
        blocks: the blocks of the fleet.
        opts: parent and provider.
    """

    async def before(_args: pulumi.ResourceHookArgs) -> None:
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
        f"{name}-block",
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

    def note(values: Sequence[Any]) -> None:
        id_, zone, starts, ends = (str(value) for value in values)
        bought = Block(offering=order.purchase.offering_id, id=id_, zone=zone, starts=starts, ends=ends)
        blocks.note(pool, bought)
        pulumi.warn(
            f"{pool}: the capacity block {id_} is bought and starts at {starts}: its hosts are made by the first "
            f"'pulumi up --stack {pulumi.get_stack()}' after that. Keep {blocks_file.FILE} with the fleet"
        )

    pulumi.Output.all(block.id, block.availability_zone, block.start_date, block.end_date).apply(note)


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
            ends = blocks_file.parse_time(purchase.starts) + dt.timedelta(hours=purchase.duration_hours)
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
