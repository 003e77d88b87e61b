"""``vllm-fleet drift``: compares every host with the plan, in seconds, and changes nothing."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue.catalogue import raise_all
from vllm_fleet.cli.output import (
    DRIFT_EXIT,
    FleetOption,
    JsonOption,
    fleet_directory,
    print_json,
    print_note,
    print_text,
)
from vllm_fleet.operate import ansible_options, drift, probing

EPILOG = """\b
Examples:
  vllm-fleet drift
  vllm-fleet drift --fleet prod --host h100-0 --json
Exit code 3: drift was found."""


def command(
    fleet: FleetOption = "lab",
    host: Annotated[
        list[str] | None, typer.Option("--host", help="Probe this host. Repeat it for more. Default: all hosts.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare the hosts with the plan.

    Probes each host and prints what differs from its manifest, with the role that owns it. Changes nothing.
    """
    site = drift.load_site_of_run(fleet_directory(fleet))
    for name in host or ():
        site.plan.host(name)
    hosts = [member for member in site.hosts if not host or member.plan.name in host]
    done = 0

    def progress(report: probing.Report) -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty():
            print_note(f"\r{done} of {len(hosts)} hosts", end="\n" if done == len(hosts) else "")
        del report

    targets = {member.plan.name: ansible_options.with_environment(drift.host_target(site, member)) for member in hosts}
    reports = drift.probe_site(site, targets, progress)
    items = [item for report in reports.values() for item in report.drift]
    errors = drift.blocking_errors(reports)
    if json and not errors:
        print_json({"fleet": fleet, "hosts": len(reports), "drift": [item.record() for item in items]})
    elif not json:
        for item in items:
            print_text(str(item))
        clean = sum(1 for report in reports.values() if not report.drift and not report.error and not report.veto)
        print_text(f"{len(reports)} hosts probed, {clean} match the plan, {len(items)} items drifted")
    raise_all([_plain(fault) for fault in errors])
    if items:
        raise typer.Exit(DRIFT_EXIT)


def _plain(fault: FleetError) -> FleetError:
    """The same error with a hint that fits this command."""
    if fault.code == ErrorCode.WORK_FAILED:
        fault.hint = "repair the host, or probe the others with --host"
    return fault
