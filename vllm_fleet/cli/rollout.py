"""``vllm-fleet rollout``: brings the hosts to the plan as ``site.yml`` does, and shows how it goes on."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from vllm_fleet.base import paths
from vllm_fleet.cli import passwords, rollout_table
from vllm_fleet.cli.output import FleetOption, fleet_directory, print_note
from vllm_fleet.operate import drift
from vllm_fleet.operate.rollout import run

EPILOG = """\b
Examples:
  vllm-fleet rollout --fleet prod
  vllm-fleet rollout --fleet prod --check
  vllm-fleet rollout --fleet prod --pause-after canary
  vllm-fleet rollout --fleet prod --json > events.jsonl
Ctrl-C once ends the rollout after the batch in work. Ctrl-C twice ends it at once; hosts that are at work go back to
their last good release by themselves. Run the command again to go on.
Exit code 1: a host does not serve the release. Exit code 2: bad input, or another run works on the fleet."""


def command(
    fleet: FleetOption = "lab",
    limit: Annotated[
        str | None, typer.Option("--limit", help="Only these hosts, as a pattern of Ansible. Default: all.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; print what would change.")] = False,
    pause_after: Annotated[
        Literal["canary"] | None, typer.Option(help="End the rollout when its first batch was accepted.")
    ] = None,
    ask_become_pass: passwords.AskOption = False,
    become_password_file: passwords.FileOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")] = False,
) -> None:
    """Bring the hosts to the plan, batch by batch.

    Does what 'ansible-playbook site.yml' does. A host leaves the traffic, gets the release, passes its gates and serves
    again. One that does not pass goes back to its last good release, and its batch is the last one.
    """
    with rollout_table.errors_as_result(json=json):
        directory = fleet_directory(fleet)
        drift.load_site_of_run(directory)
        if resumed := run.find_resumed(fleet):
            print_note(resumed)
        arguments = [*(["--limit", limit] if limit else []), *(["--check", "--diff"] if check else [])]
        if pause_after:
            arguments += ["-e", f"fleet_rollout_pause_after={pause_after}"]
        password = passwords.take_password(ask_become_pass, become_password_file)
        order = run.Order(fleet, directory / "fleet.yml", paths.root() / "site.yml", arguments, password)
        follow(order, json=json, check=check)


def follow(order: run.Order, *, json: bool, check: bool) -> None:
    """Runs a rollout and shows it.

    Args:
        order: what is run.
        json: whether the events are printed as JSON.
        check: whether nothing is changed, so that the output of Ansible says what would be.

    Raises:
        FleetError: a host does not serve the release, or the run could not go on.
    """
    table = rollout_table.LiveTable if sys.stdout.isatty() else rollout_table.Lines
    with rollout_table.JsonLines(with_output=False) if json else table(with_output=check) as listener:
        finished = run.drive(order, listener)
    timeline, error = finished.timeline, finished.error()
    if json:
        rollout_table.print_result(timeline, finished.file, error)
        return
    if finished.file:
        notes = rollout_table.place_notes(finished.file)
        if timeline.ended and timeline.ended.state == "paused":
            notes.append("run the command again to go on with the other hosts")
        rollout_table.print_end(timeline, notes)
    elif error is None:
        print_note("every host has its release: nothing was rolled out")
    if error:
        raise error
