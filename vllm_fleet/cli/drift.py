"""``vllm-fleet drift``: what is not as planned, on every host, in seconds."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import raise_all
from vllm_fleet.cli.output import DRIFT_EXIT, FleetOption, JsonOption, fleet_directory, print_json, stderr, stdout
from vllm_fleet.operate import drift, probing

EPILOG = "Examples: vllm-fleet drift | vllm-fleet drift --fleet prod --host h100-0 --json. Exit code 3: drift found."


def command(
    fleet: FleetOption = "lab",
    host: Annotated[list[str] | None, typer.Option("--host", help="Only this host; may be repeated.")] = None,
    json: JsonOption = False,
) -> None:
    """Probe the hosts and print what differs from their manifests, with the role that owns it."""
    found = drift.site_of_run(fleet_directory(fleet))
    for name in host or ():
        found.plan.host(name)
    asked = [each for each in found.hosts if not host or each.plan.name in host]
    done = 0

    def progress(report: probing.Report) -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty():
            stderr.print(f"\r{done} of {len(asked)} hosts", end="\n" if done == len(asked) else "", markup=False)
        del report

    reports = drift.examine(found, {each.plan.name: drift.target(found, each) for each in asked}, progress)
    items = [item for report in reports.values() for item in report.drift]
    faults = drift.faults(reports)
    if json and not faults:
        print_json({"fleet": fleet, "hosts": len(reports), "drift": [item.record() for item in items]})
    elif not json:
        for item in items:
            stdout.print(str(item), markup=False)
        clean = sum(1 for report in reports.values() if not report.drift and not report.error and not report.veto)
        stdout.print(f"{len(reports)} hosts probed, {clean} as planned, {len(items)} items drifted", markup=False)
    raise_all([_plain(fault) for fault in faults])
    if items:
        raise typer.Exit(DRIFT_EXIT)


def _plain(fault: FleetError) -> FleetError:
    """The same fault with a hint that fits this command."""
    if fault.code == "work-failed":
        fault.hint = "repair the host, or probe the others with --host"
    return fault
