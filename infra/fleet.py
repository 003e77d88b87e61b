"""A whole fleet: the hosts of every cloud that its plan names, and the file that tells Ansible of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi

from infra import clouds
from infra.files import TextFile
from infra.hosts import CloudArgs, HostRecord, inventory_text
from vllm_fleet.plan import Plan


@dataclass(frozen=True)
class FleetArgs:
    """What a fleet is made from."""

    plan: Plan


class Fleet(pulumi.ComponentResource):
    """Makes the hosts and writes ``stack.json``; what runs on the hosts is not its business.

    Attributes:
        inventory: the As-Is, the same data that ``stack.json`` holds.
    """

    inventory: pulumi.Output[dict[str, Any]]

    def __init__(self, name: str, args: FleetArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("fleet:infra:Fleet", name, None, opts)
        plan = args.plan
        hosts: dict[str, HostRecord] = {}
        parts: list[pulumi.Resource] = []
        for cloud in dict.fromkeys(host.cloud for host in plan.hosts):
            mine = tuple(host for host in plan.hosts if host.cloud == cloud)
            part = clouds.component(cloud)(
                f"{name}-{cloud}",
                CloudArgs(plan.fleet, plan.directory, mine, plan.access, plan.document),
                pulumi.ResourceOptions(parent=self),
            )
            hosts.update(part.hosts)
            parts.append(part)
        self.inventory = pulumi.Output.from_input(
            {"version": 1, "fleet": plan.fleet, "hosts": {host: record.inputs() for host, record in hosts.items()}}
        )
        TextFile(
            f"{name}-inventory",
            path=plan.directory / "stack.json",
            text=self.inventory.apply(inventory_text),
            mode=0o644,
            opts=pulumi.ResourceOptions(parent=self, depends_on=parts),
        )
        self.register_outputs({"inventory": self.inventory})
