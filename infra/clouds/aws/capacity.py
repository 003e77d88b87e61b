"""The capacity of a pool: on demand, spot, a reservation, or a capacity block, which the stack can buy."""

from __future__ import annotations

from typing import Any

import pulumi

from infra.clouds.aws.blocks import Blocks, Order, buy
from infra.hosts import CloudArgs, placed, rented
from infra.sdk import aws
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet import stack
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.capacity_block import CapacityBlock
from vllm_fleet.schema.cloud import AwsPlacement, Purchase


class Capacity:
    """Market, reservation and placement group of the hosts of one pool.

    Attributes:
        ignored: inputs of an instance whose changes are ignored, for the sake of its capacity.
    """

    ignored: tuple[str, ...] = ()

    def __init__(
        self, hosts: tuple[HostPlan, ...], args: CloudArgs, blocks: Blocks, opts: pulumi.ResourceOptions
    ) -> None:
        self._hosts, self._args, self._opts = hosts, args, opts
        self._name = f"{args.fleet}-{hosts[0].pool}"
        self._placement = placed(hosts[0], AwsPlacement)
        capacity = self._placement.capacity
        self._id = capacity.id
        self._waits = False
        if capacity.kind == "capacity-block":
            # The provider does not read it back for a block, and takes its absence for a reason to replace the host:
            # resourceInstanceFlatten in internal/service/ec2/ec2_instance.go of the AWS provider.
            self.ignored = ("instanceMarketOptions",)
        if capacity.purchase:
            self._bought(capacity.purchase, blocks)
        self._group = self._placement_group()

    @property
    def hosts(self) -> tuple[HostPlan, ...]:
        """The hosts that this run makes or keeps: those of a block that has not begun wait, unless they exist."""
        return tuple(host for host in self._hosts if not self._waits or self._args.zones.is_made(host.name))

    def arguments(self) -> dict[str, Any]:
        """The arguments of an instance for its capacity."""
        kind = self._placement.capacity.kind
        arguments: dict[str, Any] = {}
        if kind == "spot":
            # A spot instance that AWS ends is gone from the state at the next refresh, and that run creates a new one.
            spot = {"spot_instance_type": "one-time", "instance_interruption_behavior": "terminate"}
            arguments["instance_market_options"] = {"market_type": "spot", "spot_options": spot}
        if kind == "capacity-block":
            arguments["instance_market_options"] = {"market_type": "capacity-block"}
        if self._id is not None:
            arguments["capacity_reservation_specification"] = {
                "capacity_reservation_target": {"capacity_reservation_id": self._id}
            }
        if self._group is not None:
            arguments["placement_group"] = self._group
        return arguments

    def _placement_group(self) -> pulumi.Input[str] | None:
        group = self._placement.placement_group
        if isinstance(group, str):
            return group
        if not group:
            return None
        return aws.ec2.PlacementGroup(self._name, name=self._name, strategy="cluster", opts=self._opts).name

    def _bought(self, purchase: Purchase, blocks: Blocks) -> None:
        pool = self._hosts[0].pool
        block = blocks.bought(pool, purchase)
        if block is None:
            self._waits = True
            zone = self._placement.all_zones[0]
            order = Order(purchase, rented(self._hosts[0]).shape, len(self._hosts), zone)
            buy(self._name, pool, order, blocks, self._opts)
            return
        self._id = block.id
        up = stack.up_command(self._args.fleet)
        if not block.begun(blocks.now):
            self._waits = True
            pulumi.warn(f"{pool}: the capacity block {block.id} starts at {block.starts}: run '{up}' after that")
        if block.ended(blocks.now):
            self._refuse(pool, block)

    def _refuse(self, pool: str, block: CapacityBlock) -> None:
        """Refuses hosts in a block that has ended; those that AWS has not ended yet stay as they are."""
        for host in self._hosts:
            self._args.zones.refuse(
                host,
                FleetError(
                    f"the capacity block {block.id} of {pool} ended at {block.ends}: {host.name} was not requested",
                    "order another offering in its purchase, or remove the pool; stack.json has what was bought",
                ),
            )
