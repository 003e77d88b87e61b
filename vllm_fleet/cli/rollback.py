"""``vllm-fleet rollback``: switches hosts back to the release before, which is on them still."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Annotated

import typer

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.cli import passwords, rollout_table
from vllm_fleet.cli.output import FleetOption, fleet_directory
from vllm_fleet.inventory import Site, SiteHost
from vllm_fleet.operate import ansible_options, drift
from vllm_fleet.operate.rollout import order, rollback, run
from vllm_fleet.operate.rollout.hosts import host_of_variables
from vllm_fleet.operate.rollout.timeline import Timeline

EPILOG = """\b
Examples:
  vllm-fleet rollback --fleet prod
  vllm-fleet rollback --fleet prod --pool h100
  vllm-fleet rollback --fleet prod --host h100-3 --host h100-4 --json
The plan stays: the next site.yml brings the newer release again. To keep the release before, revert the change of
fleet.yml or of the catalogue.
Exit code 1: a host did not go back. Exit code 2: a host has no earlier release; no host was touched."""


def command(
    fleet: FleetOption = "lab",
    pool: Annotated[
        list[str] | None, typer.Option("--pool", help="The hosts of this pool. Repeat it for more.")
    ] = None,
    host: Annotated[list[str] | None, typer.Option("--host", help="This host. Repeat it for more.")] = None,
    ask_become_pass: passwords.AskOption = False,
    become_password_file: passwords.FileOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")] = False,
) -> None:
    """Switch hosts back to the release before.

    Its files are on the host: nothing is installed. Each host leaves the traffic, starts its last good release before
    the accepted one, and serves again. Never more hosts of a model than max_unavailable are out of traffic.
    """
    with rollout_table.errors_as_result(json=json):
        site = drift.load_site_of_run(fleet_directory(fleet))
        chosen = choose_hosts(site, pool or (), host or ())
        password = passwords.take_password(ask_become_pass, become_password_file)
        hosts = [host_of_variables(member.plan.name, member.variables, {}) for member in chosen]
        gateways = {name for each in hosts for name in each.gateways}
        targets = {
            member.plan.name: replace(
                ansible_options.with_environment(drift.host_target(site, member)), become_password=password
            )
            for member in site.hosts
            if member in chosen or member.plan.name in gateways
        }
        names = {each.name for each in hosts}
        rollout = site.plan.spec.rollout
        follow(rollback.Order(fleet, hosts, order.members_to_go_back(site, names), targets, rollout), json=json)


def choose_hosts(site: Site, pools: tuple[str, ...] | list[str], names: tuple[str, ...] | list[str]) -> list[SiteHost]:
    """The serving hosts of pools and of names; without any, all of the fleet.

    Args:
        site: the fleet.
        pools: names of pools.
        names: names of hosts.

    Raises:
        FleetError: the fleet has no such pool or host, or it serves nothing.
    """
    serving = [member for member in site.hosts if member.plan.deployment]
    for name in names:
        site.plan.host(name)
        if name not in [member.plan.name for member in serving]:
            raise FleetError(
                "serves no model, so it has no release", "name a host that serves", key="--host", host=name
            )
    known = sorted({member.plan.pool for member in serving})
    for pool in pools:
        if pool not in known:
            raise FleetError(f"no pool {pool!r} serves", f"pools: {', '.join(known) or 'none'}", key="--pool")
    every = not pools and not names
    return [member for member in serving if every or member.plan.pool in pools or member.plan.name in names]


def follow(what: rollback.Order, *, json: bool) -> None:
    """Takes hosts back and shows it.

    Args:
        what: what goes back.
        json: whether the events are printed as JSON.

    Raises:
        FleetError: a host has no earlier release, or did not go back.
    """
    listener = (rollout_table.JsonLines if json else rollout_table.Lines)(with_output=False)
    timeline, follower = Timeline(), run.Follower(what.fleet)

    def show() -> None:
        for event in follower.read(os.getpid()):
            timeline.add(event)
            listener.hear_event(event, timeline)

    with run.counted_interrupts(twice_raises=True) as presses:
        rollback.roll_back(what, lambda: bool(presses), show)
    show()
    error = _error(timeline, interrupted=bool(presses))
    if json:
        rollout_table.print_result(timeline, follower.file, error)
        return
    notes = rollout_table.place_notes(follower.file)
    notes.append(
        "the next site.yml brings the newer release again: to keep this one, revert the change of fleet.yml or of the "
        "catalogue"
    )
    rollout_table.print_end(timeline, notes)
    if error:
        raise error


def _error(timeline: Timeline, *, interrupted: bool) -> FleetError | None:
    if timeline.refused:
        names = ", ".join(host.name for host in timeline.refused)
        hint = "see why above; what they served before is on trial no more"
        return FleetError(f"did not go back: {names}", hint, code=ErrorCode.WORK_FAILED)
    if interrupted and any(host.left for host in timeline.hosts.values()):
        return FleetError("interrupted after the batch in work", "run the command again", code=ErrorCode.INTERRUPTED)
    return None
