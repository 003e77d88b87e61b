"""``vllm-fleet key``: the API keys of the gateways: add, list, rotate and revoke."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_fleet.base import paths
from vllm_fleet.cli.output import (
    FleetOption,
    JsonOption,
    fleet_directory,
    print_json,
    print_note,
    print_table,
    print_text,
)
from vllm_fleet.fleet import plan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.operate import api_keys
from vllm_fleet.schema.api_keys import DEFAULT_PRIORITY, Scope

EPILOG = """\b
Examples:
  vllm-fleet key add team-a --fleet prod --days 90
  vllm-fleet key add batch --fleet prod --priority 2 --in-flight 64 --tokens-per-minute 200000
  vllm-fleet key add prometheus --fleet prod --scope metrics > prometheus.key
  vllm-fleet key list --fleet prod
  vllm-fleet key rotate team-a --fleet prod --keep 7
  vllm-fleet key revoke team-a --fleet prod
'vllm-fleet key COMMAND --help' shows the options of each."""
_ADD_EPILOG = """\b
Examples:
  vllm-fleet key add team-a --fleet prod --ends 2027-06-30
  vllm-fleet key add batch --fleet prod --priority 2 --in-flight 64 --tokens-per-minute 200000
  vllm-fleet key add prometheus --fleet prod --scope metrics > prometheus.key"""
_LIST_EPILOG = """\b
Examples:
  vllm-fleet key list --fleet prod
  vllm-fleet key list --fleet prod --json"""
_ROTATE_EPILOG = """\b
Examples:
  vllm-fleet key rotate team-a --fleet prod
  vllm-fleet key rotate team-a --fleet prod --keep 0"""
_REVOKE_EPILOG = """\b
Examples:
  vllm-fleet key revoke team-a --fleet prod
  vllm-fleet key revoke team-a --fleet prod --digest 51062038de28"""

group = typer.Typer(
    help="Add, list, rotate and revoke the API keys of the gateways.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_OWNER_HELP = "Who has the key: lower-case letters, digits and dashes."


@group.command("add", epilog=_ADD_EPILOG)
def add_key(
    owner: Annotated[str, typer.Argument(metavar="OWNER", help=_OWNER_HELP)],
    fleet: FleetOption = "lab",
    ends: Annotated[
        str | None, typer.Option(metavar="DATE", help="Last day in UTC, or a time with its zone. Default: no end.")
    ] = None,
    days: Annotated[int | None, typer.Option(metavar="N", help="The last day is N days from today.")] = None,
    requests_per_second: Annotated[int | None, typer.Option(min=1, max=100_000, help="Default: no limit.")] = None,
    in_flight: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Requests at the same time, times 'n'. Default: no limit.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, max=1_000_000_000, help="Of prompts and answers. Default: no limit.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option(min=0, max=9, help=f"Higher ones leave the queue first. Default: {DEFAULT_PRIORITY}.")
    ] = None,
    scope: Annotated[Scope | None, typer.Option(help="The API, or the metrics of the gateways. Default: api.")] = None,
    json: JsonOption = False,
) -> None:
    """Make a key for a new owner.

    The key is printed once, alone on standard output. The file of the fleet has its digest.
    """
    planned = plan.load(fleet_directory(fleet))
    limits = {
        "ends": api_keys.parse_end(ends, days),
        "requests_per_second": requests_per_second,
        "in_flight": in_flight,
        "tokens_per_minute": tokens_per_minute,
        "priority": priority,
        "scope": scope,
    }
    _print_key(planned, api_keys.add_key(planned, owner, limits), json=json)


@group.command("list", epilog=_LIST_EPILOG)
def list_keys(fleet: FleetOption = "lab", json: JsonOption = False) -> None:
    """List owners, digests, ends and limits."""
    found = api_keys.list_keys(plan.load(fleet_directory(fleet)))
    if json:
        print_json([each.data() for each in found])
        return
    from rich.table import Table  # not before: the other commands print no table

    table = Table(box=None, pad_edge=False)
    for name in ("owner", "digest", "state", "ends", "requests/s", "in flight", "tokens/min", "priority", "scope"):
        table.add_column(name)
    for each in found:
        record = each.record
        limits = (record.requests_per_second, record.in_flight, record.tokens_per_minute)
        shown = [each.owner, each.digest, each.state, each.ends or "never"]
        shown += ["-" if limit is None else str(limit) for limit in limits]
        table.add_row(*shown, str(record.priority), record.scope)
    print_table(table)


@group.command("rotate", epilog=_ROTATE_EPILOG)
def rotate_key(
    owner: Annotated[str, typer.Argument(metavar="OWNER", help=_OWNER_HELP)],
    fleet: FleetOption = "lab",
    keep: Annotated[
        int, typer.Option(metavar="DAYS", min=0, max=3650, help="The keys before it stay valid so long; 0: not at all.")
    ] = 7,
    json: JsonOption = False,
) -> None:
    """Make another key for an owner, and end those before it.

    The new key has the limits of the owner, which all keys of the owner share.
    """
    planned = plan.load(fleet_directory(fleet))
    made = api_keys.rotate_key(planned, owner, keep)
    if made.kept and not json:
        print_note(f"The keys before it are valid until the end of {api_keys.day_after(keep)} in UTC, or end before.")
    _print_key(planned, made, json=json)


@group.command("revoke", epilog=_REVOKE_EPILOG)
def revoke_key(
    owner: Annotated[str, typer.Argument(metavar="OWNER", help=_OWNER_HELP)],
    fleet: FleetOption = "lab",
    digest: Annotated[
        str | None,
        typer.Option(metavar="PREFIX", help="Only the key whose digest begins so. Default: all of the owner."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Remove the keys of an owner, or one of them.

    Requests that are running end as they would; new ones are refused once the gateways have the file.
    """
    planned = plan.load(fleet_directory(fleet))
    left = api_keys.revoke_key(planned, owner, digest)
    if json:
        print_json({"owner": owner, "keys_left": left})
        return
    print_text(f"revoked; keys of {owner} that are left: {left}")
    print_note(_next_step(planned))


def _print_key(planned: Plan, made: api_keys.NewKey, *, json: bool) -> None:
    """The key on standard output, and what to do with it on standard error."""
    if json:
        print_json({"owner": made.owner, "key": made.key, "digest": made.digest, "file": made.file})
        return
    print_note(f"The key of {made.owner}, shown only now; {made.file} has its digest:")
    print_text(made.key)
    print_note(_next_step(planned))


def _next_step(planned: Plan) -> str:
    if not any(host.kind == "gateway" for host in planned.hosts):
        return "the fleet has no gateway that would ask for it"
    inventory = paths.display(planned.directory / "fleet.yml")
    return f"next: ansible-playbook -i {inventory} site.yml --limit gateway"
