"""``vllm-fleet plan``: hosts, instances, memory, price, and what differs from the stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from vllm_fleet import inventory
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue import catalogue
from vllm_fleet.cli import plan_tables
from vllm_fleet.cli.output import (
    FleetOption,
    JsonOption,
    fleet_directory,
    print_json,
    print_note,
    print_table,
    print_text,
)
from vllm_fleet.edge import prices as gpuhunt_prices
from vllm_fleet.edge import pulumi_cli
from vllm_fleet.fleet import api_address, cost, first_copy, host_plan, plain_api, replacement, stack, stack_faults
from vllm_fleet.fleet import plan as plans
from vllm_fleet.host import gateway_tables, model_sources

EPILOG = """\b
Examples:
  vllm-fleet plan
  vllm-fleet plan --fleet prod --preview
  vllm-fleet plan --fleet prod --replace-serving h100-1,h100-3"""
PreviewOption = Annotated[
    bool, typer.Option("--preview", help="Run 'pulumi preview' too: it alone knows which hosts are replaced.")
]
ReplaceOption = Annotated[
    str | None,
    typer.Option(
        "--replace-serving", metavar="HOST[,HOST]", help="Hosts that may be replaced; prints the commands for it."
    ),
]
PricesOption = Annotated[
    Literal["fleet", "gpuhunt"],
    typer.Option("--prices", help="Prices from fleet.yml alone, or from gpuhunt's catalogue first."),
]


@dataclass(frozen=True)
class _StackUpdate:
    """What an update of the stack would do.

    Attributes:
        as_is: what the stack has, in words.
        changes: the hosts that would change.
        run: the commands that replace the hosts the caller names.
        refused: why the update is not permitted; None where it is.
        faults: what 'pulumi up' would refuse in the fleet or lacks on this machine.
    """

    as_is: str
    changes: tuple[replacement.Change, ...]
    run: tuple[str, ...]
    refused: FleetError | None
    faults: tuple[FleetError, ...]


def command(
    fleet: FleetOption = "lab",
    json: JsonOption = False,
    preview: PreviewOption = False,
    replace_serving: ReplaceOption = None,
    prices: PricesOption = "fleet",
) -> None:
    """Show the hosts, cost and pending changes of a fleet.

    Prints what each host runs, what it costs, and what 'pulumi up' would change in the stack.
    """
    allowed = replacement.parse_hosts(replace_serving) if replace_serving is not None else []
    recipes = catalogue.load()
    plan = plans.load(fleet_directory(fleet), recipes)
    refusals = inventory.find_refusals(plan, recipes)
    catalogue.raise_all([refusal.error for refusal in refusals if refusal.stops_plan])
    bill = cost.bill(plan, recipes, *_price_lists(plan, prices))
    missing = tuple(refusal.error for refusal in refusals)
    unmade = tuple(fault for fault, _ in stack_faults.find(plan, recipes))
    models = tuple(model_sources.report_models(plan, recipes))
    as_is, changes = _changes(plan, preview, allowed)
    replacement.check(plan, changes, allowed)
    run = replacement.commands(plan, changes, allowed) if allowed else ()
    refused = replacement.refusal(plan, changes, allowed)
    if warning := plain_api.plain_api_warning(plan.hosts, plan.spec):
        print_note(f"warning: {warning}")
    if note := gateway_tables.unopened_ports_note(plan):
        print_note(f"firewall: {note}")
    if json:
        _print_record(plan, (bill, models, missing), _StackUpdate(as_is, changes, run, refused, unmade))
    else:
        print_table(plan_tables.hosts([_record(host) for host in plan.hosts]))
        for line in plan_tables.memory_lines(host.deployment for host in plan.hosts):
            print_text(line)
        print_table(plan_tables.models(models))
        if copies := tuple(first_copy.first_copies(plan)):
            print_table(plan_tables.first_copies(copies))
            print_text(f"first copy: {first_copy.ASSUMES}")
        print_table(plan_tables.costs(bill))
        print_text(f"cost: {bill.summary()}")
        for url in api_address.api_urls(plan):
            print_text(f"API: {url}/v1")
        for fault in unmade:
            print_text(f"pulumi up will refuse: {fault}")
        for fault in missing:
            print_text(f"site.yml will refuse: {fault}")
        print_text(f"stack: {as_is}")
        for line in plan_tables.change_lines(changes, run):
            print_text(line)
    if refused:
        if not json:
            print_note(f"error: {refused}")
        raise typer.Exit(refused.exit_code)


def _price_lists(plan: plans.Plan, prices: str) -> list[cost.PriceList]:
    lists = [cost.own(plan)]
    if prices == "gpuhunt":
        try:
            lists.insert(0, gpuhunt_prices.load(host.cloud for host in plan.hosts if host.rented))
        except FleetError as fault:
            if fault.code != ErrorCode.WORK_FAILED:
                raise
            # A plan is worth printing without prices too.
            print_note(f"prices: {fault}")
    return lists


def _changes(plan: plans.Plan, preview: bool, allowed: Sequence[str]) -> tuple[str, tuple[replacement.Change, ...]]:
    """What the stack has, in words, and what would change in it.

    Args:
        plan: the fleet.
        preview: whether Pulumi is asked without hosts that may be replaced too.
        allowed: the hosts that may be replaced.
    """
    try:
        stack.check_stack(plan)
        needs_stack = stack.is_written(plan) or any(host.cloud != "static" for host in plan.hosts)
        as_is = "the stack has the planned hosts" if needs_stack else "none is needed, all hosts exist already"
        as_is = "; ".join([as_is, *stack.waiting_notes(plan)])
    except FleetError as fault:
        as_is = str(fault)
    if preview or allowed:
        try:
            preview_report = pulumi_cli.preview(plan.fleet, *stack.refresh_options(plan))
            return as_is, replacement.with_lost(replacement.previewed(preview_report), stack.made_hosts(plan))
        except FleetError as fault:
            # Only Pulumi knows whether a host that is in no file is in its state; without it, both may be wrong.
            catalogue.raise_all([*replacement.unknown_hosts(plan, allowed, stack.made_hosts(plan)), fault])
            raise
    return as_is, replacement.known_changes(stack.without_waiting(plan), stack.made_hosts(plan))


def _print_record(
    plan: plans.Plan,
    found: tuple[cost.Bill, tuple[model_sources.ModelReport, ...], tuple[FleetError, ...]],
    update: _StackUpdate,
) -> None:
    bill, models, missing = found
    print_json(
        {
            "fleet": plan.fleet,
            "hosts": [_record(host) for host in plan.hosts],
            "models": [vars(model) for model in models],
            "api": [f"{url}/v1" for url in api_address.api_urls(plan)],
            "first_copies": [copy.record() for copy in first_copy.first_copies(plan)],
            "cost": bill.record(),
            "up_refuses": [fault.record() for fault in update.faults],
            "site_refuses": [fault.record() for fault in missing],
            "stack": update.as_is,
            "changes": [change.record() for change in update.changes],
            "run": list(update.run),
            **({"error": update.refused.record()} if update.refused else {}),
        }
    )


def _record(host: host_plan.HostPlan) -> dict[str, Any]:
    deployment = host.deployment.record() if host.deployment else {}
    return {
        "host": host.name,
        "kind": host.kind,
        "pool": host.pool,
        "cloud": host.cloud,
        "instances": [{"name": name, "port": port, **deployment} for name, port in host.instances],
    }
