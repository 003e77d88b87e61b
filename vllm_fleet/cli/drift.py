"""``vllm-fleet drift``: compares every host with the plan, in seconds, and changes nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue.catalogue import raise_all
from vllm_fleet.cli import passwords
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
  vllm-fleet drift --fleet rack --ask-become-pass
Exit code 3: drift was found. Exit code 2: a host is not what its class says. Exit code 1: a host gave no answer.
The lowest of them counts; the drift of the other hosts is printed all the same."""


def command(
    fleet: FleetOption = "lab",
    host: Annotated[
        list[str] | None, typer.Option("--host", help="Probe this host. Repeat it for more. Default: all hosts.")
    ] = None,
    json: JsonOption = False,
    ask_become_pass: passwords.AskOption = False,
    become_password_file: passwords.FileOption = None,
) -> None:
    """Compare the hosts with the plan.

    Probes each host and prints what differs from its manifest, with the role that owns it. Changes nothing.
    """
    site = drift.load_site_of_run(fleet_directory(fleet))
    for line in site.waiting:
        print_note(line)
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

    password = passwords.take_password(ask_become_pass, become_password_file)
    targets = {
        member.plan.name: replace(
            ansible_options.with_environment(drift.host_target(site, member)), become_password=password
        )
        for member in hosts
    }
    reports = drift.probe_site(site, targets, progress)
    items = [item for report in reports.values() for item in report.drift]
    if json:
        print_json(_record(fleet, reports))
    else:
        for item in items:
            print_text(str(item))
        answered = [report for report in reports.values() if not report.error]
        clean = sum(1 for report in answered if not report.drift and not report.veto)
        silent = len(reports) - len(answered)
        told = f"{len(answered)} hosts probed, {clean} match the plan, {len(items)} items drifted"
        print_text(f"{told}; {silent} did not answer" if silent else told)
    # Those without an answer first: their exit code counts.
    errors = sorted(map(_plain, drift.blocking_errors(reports)), key=lambda error: error.exit_code)
    if errors and json:
        raise typer.Exit(errors[0].exit_code)
    raise_all(errors)
    if items:
        raise typer.Exit(DRIFT_EXIT)


def _record(fleet: str, reports: Mapping[str, probing.Report]) -> dict[str, Any]:
    """The result as JSON: what is known of each host, also where others gave no answer."""
    return {
        "fleet": fleet,
        "hosts": len(reports),
        "drift": [item.record() for report in reports.values() for item in report.drift],
        "unreachable": [{"host": name, "why": report.error} for name, report in reports.items() if report.error],
        "vetoes": [
            {"host": name, "code": veto.code.value, "why": veto.text}
            for name, report in reports.items()
            for veto in report.veto
        ],
    }


def _plain(fault: FleetError) -> FleetError:
    """The same error with a hint that fits this command."""
    if fault.code == ErrorCode.WORK_FAILED:
        fault.hint = "repair the host, or probe the others with --host"
    return fault
