"""A whole fleet: the hosts of every cloud in its plan, and ``stack.json``, from which Ansible knows them."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from typing import Any

import pulumi

from infra import clouds
from infra.access import AccessKeys
from infra.files import TextFile
from infra.hosts import CloudArgs, HostRecord, gateway_addresses, inventory, inventory_text, mirror_rule
from infra.zones import Zones
from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet import replacement
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.fleet.plan import load as load_plan

#: The hosts, separated by commas, that one run may replace although the fleet protects its hosts.
REPLACE_VARIABLE = replacement.VARIABLE


def unprotected(plan: Plan) -> frozenset[str]:
    """The hosts that this run may replace or delete. For a host that left the plan, only the state decides.

    Raises:
        FleetError: the environment names a host that the fleet does not have.
    """
    named = frozenset(filter(None, os.environ.get(REPLACE_VARIABLE, "").split(",")))
    known = frozenset(host.name for host in plan.hosts)
    if unknown := sorted(named - known):
        raise FleetError(
            f"{REPLACE_VARIABLE} names {unknown[0]!r}, which is not a host of {plan.fleet}",
            f"vllm-fleet plan --fleet {plan.fleet} --replace-serving HOST prints what to run",
        )
    return named if plan.spec.protect else known


@dataclass(frozen=True)
class FleetArgs:
    """The arguments of :class:`Fleet`."""

    plan: Plan


class Fleet(pulumi.ComponentResource):
    """Creates the hosts and writes ``stack.json``. It installs nothing on the hosts.

    Attributes:
        inventory: the hosts as they are, the data of ``stack.json``.
        file: ``stack.json``, written after everything else.
    """

    inventory: pulumi.Output[dict[str, Any]]
    file: TextFile

    def __init__(self, name: str, args: FleetArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("fleet:infra:Fleet", name, None, opts)
        plan = args.plan
        mine = pulumi.ResourceOptions(parent=self)
        access = AccessKeys(f"{name}-access", plan, mine) if any(h.cloud != "static" for h in plan.hosts) else None
        hosts: dict[str, HostRecord] = {}
        parts: list[pulumi.Resource] = [access] if access else []
        # Shared by all clouds, with its file and its hooks.
        zones = Zones(plan.directory)
        gateways: dict[str, pulumi.Input[str]] = {}
        # The cloud of the gateways first: with joined networks, the firewalls of others allow their addresses.
        in_order = sorted(plan.hosts, key=lambda host: host.kind != "gateway")
        for cloud in dict.fromkeys(host.cloud for host in in_order):
            part = clouds.component(cloud)(
                f"{name}-{cloud}",
                CloudArgs(
                    fleet=plan.fleet,
                    directory=plan.directory,
                    hosts=tuple(host for host in plan.hosts if host.cloud == cloud),
                    access=plan.access,
                    document=plan.document,
                    authorised_keys=access.authorised_keys if access else "",
                    zones=zones,
                    ports=(plan.gateway.port,),
                    unprotected=unprotected(plan),
                    gateways=gateways,
                    mirror=mirror_rule(plan),
                    own_tags=plan.spec.tags,
                    account=plan.spec.account,
                ),
                mine,
            )
            hosts.update(part.hosts)
            parts.append(part)
            gateways = {**gateways, **gateway_addresses((h for h in plan.hosts if h.cloud == cloud), part.hosts)}
        self.inventory = inventory(plan.fleet, hosts)
        self.file = TextFile(
            f"{name}-inventory",
            path=plan.directory / "stack.json",
            text=self.inventory.apply(inventory_text),
            mode=0o644,
            opts=pulumi.ResourceOptions(parent=self, depends_on=parts),
        )
        self.register_outputs({"inventory": self.inventory})


def program(stack: str) -> Fleet:
    """Runs the whole program.

    Args:
        stack: the stack; its fleet has the same name.

    Raises:
        pulumi.RunError: the fleet is not valid; the message has one line.
    """
    # Nearly all objects live to the end: at 1000 hosts, garbage collection took half of the time.
    gc.set_threshold(50_000, 20, 20)
    try:
        return Fleet(stack, FleetArgs(load_plan(paths.inventories_dir() / stack)))
    except FleetError as fault:
        raise pulumi.RunError(str(fault)) from None
