"""``vllm-fleet rollout``: brings the hosts to the plan as ``site.yml`` does, and shows how it goes on."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.cli import passwords, rollout_table
from vllm_fleet.cli.output import FleetOption, fleet_directory, print_note
from vllm_fleet.inventory import Site
from vllm_fleet.operate import drift
from vllm_fleet.operate.rollout import regions, run

EPILOG = """\b
Examples:
  vllm-fleet rollout --fleet prod
  vllm-fleet rollout --fleet prod --check
  vllm-fleet rollout --fleet prod --pause-after canary
  vllm-fleet rollout --fleet prod --region us-east --region eu-west
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
    region: Annotated[
        list[str] | None, typer.Option(help="Only this region of a fleet with workers; several times for several.")
    ] = None,
    regions_after: Annotated[
        Literal["region", "canary"],
        typer.Option(help="What of the first region must be accepted before the other regions begin."),
    ] = "region",
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
        site = drift.load_site_of_run(directory)
        if resumed := run.find_resumed(fleet):
            print_note(resumed)
        arguments = ["--check", "--diff"] if check else []
        if pause_after:
            arguments += ["-e", f"fleet_rollout_pause_after={pause_after}"]
        chosen = choose_regions(site, region or [], limit)
        password = passwords.take_password(ask_become_pass, become_password_file)
        if not chosen:
            arguments = [*(["--limit", limit] if limit else []), *arguments]
            order = run.Order(fleet, directory / "fleet.yml", paths.root() / "site.yml", arguments, password)
            follow(lambda listener: run.drive(order, listener), json=json, check=check)
            return
        with tempfile.TemporaryDirectory(prefix="vllm-fleet-") as folder:
            sent = regions.pack_fleet(site, Path(folder), arguments, password)
            kept = [place / "references" for place in (directory, sent.inventory.parent)]
            regional = regions.Order(fleet, chosen, sent, check, regions_after, kept)
            follow(lambda listener: regions.drive(regional, listener), json=json, check=check)


def choose_regions(site: Site, names: list[str], limit: str | None) -> list[regions.Region]:
    """The regions of a run; none for a fleet without workers.

    Args:
        site: the fleet.
        names: the chosen regions; empty: all.
        limit: what ``--limit`` says.

    Raises:
        FleetError: there is no such region, or hosts are limited otherwise.
    """
    every = regions.regions_of(site)
    if every and limit:
        raise FleetError("the hosts of a run with workers are those of its regions", "give --region", key="--limit")
    known = [each.name for each in every]
    for name in names:
        if name not in known:
            shown = ", ".join(known) or "none: it has no workers"
            raise FleetError(f"there is no region {name!r}", f"regions of the fleet: {shown}", key="--region")
    return [each for each in every if not names or each.name in names]


def follow(drive: Callable[[run.Listener], run.Finished], *, json: bool, check: bool) -> None:
    """Runs a rollout and shows it.

    Args:
        drive: runs it to its end.
        json: whether the events are printed as JSON.
        check: whether nothing is changed, so that the output of Ansible says what would be.

    Raises:
        FleetError: a host does not serve the release, or the run could not go on.
    """
    table = rollout_table.LiveTable if sys.stdout.isatty() else rollout_table.Lines
    with rollout_table.JsonLines(with_output=False) if json else table(with_output=check) as listener:
        finished = drive(listener)
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
