"""``vllm-fleet issues LOG``: the known issues and the errors of GPUs that a log shows, and what to do about each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated

import typer

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import catalogue
from vllm_fleet.cli.output import FleetOption, JsonOption, fleet_directory, print_json, print_text
from vllm_fleet.facts.gpu_errors import JudgedError, judge_error
from vllm_fleet.fleet import plan as plans
from vllm_fleet.on_host import kernel_log
from vllm_fleet.on_host.host_tools import clean_text
from vllm_fleet.resolve import known_issues
from vllm_fleet.schema.known_issue import KnownIssue

EPILOG = """\b
Examples:
  vllm-fleet issues vllm.log
  vllm-fleet issues --log vllm.log
  ssh h100-3 journalctl -u 'vllm@*' -b | vllm-fleet issues -
  ssh h100-3 sudo dmesg | vllm-fleet issues - --json
  vllm-fleet issues vllm.log --host h100-3 --fleet prod"""

#: A longer line is read in pieces.
LINE_BYTES = 1 << 14
_WORDS = {
    "ignore": "no action",
    "restart_app": "restart the program",
    "reset_gpu": "reset the GPU, or restart the host",
    "reboot": "restart the host",
    "contact": "open a ticket with the vendor",
}
#: Where a line of the driver begins; a log may have a time and a host before it.
_DRIVER_MARKS = ("NVRM: ", "nvidia-nvswitch")


def command(
    log: Annotated[str, typer.Argument(help="A log file; - reads standard input.")] = "",
    log_option: Annotated[str, typer.Option("--log", help="The same as an option.")] = "",
    host: Annotated[str, typer.Option("--host", help="Show only issues that concern this host of the fleet.")] = "",
    fleet: FleetOption = "lab",
    json: JsonOption = False,
) -> None:
    """Show which known issues a log contains.

    Prints each known issue whose symptom is in the log, and each Xid and SXid of NVIDIA's driver, with what to do.
    """
    if bool(log) == bool(log_option):
        raise FleetError("names no log, or two", "give a log file, or - for standard input", key="--log")
    log = log or log_option
    issues = _host_issues(fleet, host) if host else catalogue.load().known_issues.issues
    driver_lines: list[str] = []
    with _open_log(log) as file:
        shown = known_issues.find_shown(issues, _read_lines(file, driver_lines))
    errors = kernel_log.find_errors("\n".join(driver_lines))
    judged = [
        (error["device"], judge_error(error["kind"], error["code"], error["detail"]))
        for error in errors
        if error["kind"] in ("xid", "sxid")
    ]
    if json:
        print_json(
            {
                "issues": [
                    {
                        **known_issues.record(found.issue),
                        "line": found.line,
                        "text": clean_text(found.text),
                        "lines": found.count,
                    }
                    for found in shown
                ],
                "gpu_errors": [
                    {"device": device, "kind": error.kind, "code": error.code, "name": error.name, "do": error.action}
                    for device, error in judged
                ],
            }
        )
        return
    if not shown and not judged:
        print_text("no known issue")
    for found in shown:
        lines = f"line {found.line}" if found.count == 1 else f"line {found.line} and {found.count - 1} more"
        print_text(f"{found.issue.id} ({lines})", bold=True)
        for name, text in (
            ("log", clean_text(found.text)),
            ("cause", found.issue.cause),
            ("fix", found.issue.fix),
            ("source", found.issue.source),
        ):
            print_text(f"  {name}: {text}")
    for device, error in judged:
        _print_error(device, error)


def _print_error(device: str, error: JudgedError) -> None:
    print_text(str(error), bold=True)
    print_text(f"  device: {device}")
    print_text(f"  do: {_WORDS[error.action] if error.name else 'unknown to the recipes, see the catalogue of NVIDIA'}")


def _host_issues(fleet: str, host: str) -> list[KnownIssue]:
    planned = plans.load(fleet_directory(fleet)).host(host)
    if planned.deployment is None:
        raise FleetError(f"{host} is a gateway: it runs no engine", "name a serving host", host=host)
    return known_issues.concerning(catalogue.load(), planned.deployment)


def _open_log(log: str) -> IO[bytes]:
    if log == "-":
        return sys.stdin.buffer
    try:
        return Path(log).open("rb")
    except OSError as error:
        raise FleetError(f"cannot be read: {error.strerror}", "name a log file, or -", file=log) from None


def _read_lines(file: IO[bytes], driver_lines: list[str]) -> Iterator[str]:
    """The lines of a log; those of NVIDIA's driver are added to a list, without what the log puts before them."""
    while block := file.readline(LINE_BYTES):
        line = block.decode("utf-8", "replace").rstrip("\r\n")
        for mark in _DRIVER_MARKS:
            if mark in line and len(driver_lines) < 100_000:
                driver_lines.append(line[line.index(mark) :])
        yield line
