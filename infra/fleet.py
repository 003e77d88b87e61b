"""A whole fleet: the hosts of every cloud in its plan, and ``stack.json``, from which Ansible knows them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi

from infra import clouds, guard, state
from infra.access import AccessKeys
from infra.files import Content, TextFile
from infra.hosts import CloudArgs, HostRecord, gateway_addresses, gateway_ports, inventory, inventory_text, mirror_rule
from infra.state import State
from infra.zones import Zones
from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError, list_errors, raise_all
from vllm_fleet.catalogue.catalogue import load as load_catalog
from vllm_fleet.edge import pulumi_plugins
from vllm_fleet.fleet import replacement, stack_faults
from vllm_fleet.fleet.cloud_sdks import list_plugins
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.fleet.plan import load as load_plan
from vllm_fleet.host.gateway_tables import peer_ports

#: The hosts, separated by commas, that one run may replace although the fleet protects its hosts.
REPLACE_VARIABLE = replacement.VARIABLE
#: The functions of the SDK between the constructor that the program calls and the one that takes the trace.
_SDK_FRAMES = 6
_OWN_FRAMES = 1


@dataclass(frozen=True)
class FleetArgs:
    """The arguments of :class:`Fleet`.

    Attributes:
        plan: the fleet.
        state: what the stack has before this run.
    """

    plan: Plan
    state: State = field(default_factory=State)


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
        named = guard.named_hosts(plan, args.state)
        # For a host that left the plan, only the state decides.
        unprotected = named if plan.spec.protect else frozenset(host.name for host in plan.hosts)
        watch = guard.Guard(plan.fleet, unprotected)
        mine = pulumi.ResourceOptions(parent=self)
        access = AccessKeys(f"{name}-access", plan, mine) if any(h.cloud != "static" for h in plan.hosts) else None
        hosts: dict[str, HostRecord] = {}
        # Those of a pool that left the fleet too: it may come back, and its block is paid for.
        blocks: dict[str, pulumi.Input[Mapping[str, str]]] = dict(args.state.blocks)
        parts: list[pulumi.Resource] = [access] if access else []
        # Shared by all clouds, with its file and its hooks.
        zones = Zones(plan.directory, args.state.creating, args.state.protected)
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
                    ports=gateway_ports(plan),
                    peer_ports=peer_ports(plan),
                    unprotected=unprotected,
                    named=named,
                    guard=watch,
                    gateways=gateways,
                    mirror=mirror_rule(plan),
                    own_tags=plan.spec.tags,
                    account=plan.spec.account,
                    state=args.state,
                ),
                mine,
            )
            hosts.update(part.hosts)
            blocks.update(part.blocks)
            parts.append(part)
            gateways = {**gateways, **gateway_addresses((h for h in plan.hosts if h.cloud == cloud), part.hosts)}
        self.inventory = inventory(plan, hosts, blocks)
        text, meanwhile = self.inventory.apply(inventory_text), _with_leaving(plan, args.state, self.inventory)
        self.file = TextFile(
            f"{name}-inventory",
            Path(plan.fleet, "stack.json"),
            Content(text, 0o644, meanwhile),
            pulumi.ResourceOptions(parent=self, depends_on=parts),
        )
        self.register_outputs({"inventory": self.inventory})


def _with_leaving(plan: Plan, before: State, now: pulumi.Output[dict[str, Any]]) -> pulumi.Output[str] | None:
    """``stack.json`` with the hosts that this run will delete, after it was written; None where none leaves."""
    kept = {host.name for host in plan.hosts}
    leaving = {name: record for name in before.protected if name not in kept and (record := before.record(name))}
    if not leaving:
        return None
    networks = before.stack.get("networks", {})

    def text(inventory: dict[str, Any]) -> str:
        both = {**networks, **inventory.get("networks", {})}
        hosts = {**leaving, **inventory["hosts"]}
        return inventory_text({**inventory, "hosts": hosts, **({"networks": both} if both else {})})

    return now.apply(text)


def program(stack: str) -> Fleet:
    """Runs the whole program.

    Args:
        stack: the stack; its fleet has the same name.

    Raises:
        pulumi.RunError: the fleet is not valid, or a plugin of its clouds cannot be had; a line for each error.
    """
    try:
        plan = load_plan(paths.inventories_dir() / stack)
        _check(plan)
        before = state.read(stack)
        guard.check(plan, before)
        return build(plan, before)
    except FleetError as fault:
        raise pulumi.RunError("\n".join(map(str, list_errors(fault)[0]))) from None


def build(plan: Plan, before: State) -> Fleet:
    """The fleet of a plan, in a program that is to be quick with a thousand hosts.

    Args:
        plan: the fleet.
        before: what its stack has.
    """
    # Nearly all objects live to the end: at 1000 hosts, garbage collection took half of the time.
    gc.set_threshold(50_000, 20, 20)
    with _short_stack_traces():
        return Fleet(plan.fleet, FleetArgs(plan, before))


def _check(plan: Plan) -> None:
    """Refuses what would fail in the middle of a run, before a resource is made.

    Raises:
        FleetError: a value stands for one of the user's own; an SDK or a plugin is missing.
    """
    recipes = load_catalog()
    # No host comes of a rehearsal.
    faults = () if pulumi_plugins.is_rehearsed() else stack_faults.find(plan, recipes, in_examples=True)
    raise_all(fault for fault, _ in faults)
    pulumi_plugins.check_reachable(list_plugins(plan, recipes), plan.fleet)


@contextmanager
def _short_stack_traces() -> Iterator[None]:
    """Keeps the stack trace of a resource to the lines of the program that made it.

    The SDK sends the whole trace of each constructor with it, and the state keeps that: a third of the state, which a
    file backend writes anew for each step. Errors that leave the block are printed with all of their lines.
    """
    before = getattr(sys, "tracebacklimit", None)
    sys.tracebacklimit = _SDK_FRAMES + _OWN_FRAMES
    try:
        yield
    finally:
        if before is None:
            del sys.tracebacklimit
        else:
            sys.tracebacklimit = before
