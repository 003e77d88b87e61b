"""``vllm-fleet rollout-report``: the record of a rollout as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.cli.output import FleetOption, JsonOption, fleet_directory, print_json, print_text
from vllm_fleet.operate.rollout import record, report
from vllm_fleet.operate.rollout.timeline import Timeline

EPILOG = """\b
Examples:
  vllm-fleet rollout-report --fleet prod
  vllm-fleet rollout-report --fleet prod --list
  vllm-fleet rollout-report --fleet prod --run 20261130T061024Z-4711
A rollout writes its report itself when it ends. The page needs nothing but a browser. It has log lines of hosts."""


def command(
    fleet: FleetOption = "lab",
    run: Annotated[str | None, typer.Option("--run", help="The name of a record. Default: the newest.")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the records, the newest first.")] = False,
    json: JsonOption = False,
) -> None:
    """Write the report of a rollout as a page.

    Phases of each host, gates with their figures, requests that the gateways counted as wrong, changed lines, and the
    log of hosts that were refused.
    """
    fleet_directory(fleet)
    records = record.list_records(fleet)
    if list_all:
        rows = [{"run": file.stem, "summary": Timeline.read(record.read_record(file)).summary} for file in records]
        if json:
            print_json(rows)
        for row in () if json else rows:
            print_text(f"{row['run']}  {row['summary']}")
        return
    page = report.write_report(choose_record(fleet, records, run))
    if json:
        print_json({"fleet": fleet, "report": str(page)})
    else:
        print_text(paths.display(page))


def choose_record(fleet: str, records: list[Path], name: str | None) -> Path:
    """The record of a name; without one the newest.

    Args:
        fleet: the fleet's name.
        records: its records, the newest first.
        name: the name of a record.

    Raises:
        FleetError: there is no such record.
    """
    if not records:
        raise FleetError(f"the fleet {fleet} has no record of a rollout", "roll out first: 'vllm-fleet rollout'")
    found = [file for file in records if name in (None, file.stem)]
    if not found:
        hint = f"'vllm-fleet rollout-report --fleet {fleet} --list' shows the names"
        raise FleetError(f"no rollout is named {name!r}", hint, key="--run")
    return found[0]
