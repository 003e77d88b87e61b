"""``vllm-fleet leave``: removes from a host what the toolkit has made, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.cli.output import FleetOption, JsonOption, fleet_directory, print_json, print_note, print_text
from vllm_fleet.edge.playbook import run_playbook
from vllm_fleet.operate import ansible_options, become_password, drift, leave

EPILOG = """\b
Examples:
  vllm-fleet leave --fleet prod h100-3 --check
  vllm-fleet leave --fleet prod h100-3 --yes --keep-models
  vllm-fleet leave --fleet prod h100-3 --yes --packages --json
Then remove the host from fleet.yml and run site.yml, which removes it from the gateways."""


def command(
    host: Annotated[str, typer.Argument(help="The host. It is still in fleet.yml, which says how to reach it.")],
    fleet: FleetOption = "lab",
    yes: Annotated[bool, typer.Option("--yes", help="Remove. Without it, nothing is touched.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only print what would be removed.")] = False,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep the weights.")] = False,
    packages: Annotated[
        bool, typer.Option("--packages", help="Remove the packages that the toolkit installed.")
    ] = False,
    no_drain: Annotated[
        bool, typer.Option("--no-drain", help="Do not wait for requests, such as when a gateway is gone.")
    ] = False,
    become_password_file: Annotated[
        Path | None,
        typer.Option(envvar="ANSIBLE_BECOME_PASSWORD_FILE", help="The file with the password for sudo on the host."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Remove from a host what the toolkit has made.

    Drains the host at the gateways, then stops and removes units, containers, images, engines, releases, caches,
    weights, the firewall table, package sources, pins, holds, settings and the account. What was there before stays. An
    interrupted run continues when it is run again.
    """
    directory = fleet_directory(fleet)
    site = drift.load_site_of_run(directory)
    site.plan.host(host)
    member = next(member for member in site.hosts if member.plan.name == host)
    password = become_password.read_file(become_password_file) if become_password_file else None
    target = replace(ansible_options.with_environment(drift.host_target(site, member)), become_password=password)
    left = leave.check_leave(target, leave.Options(packages=packages, keep_models=keep_models))
    if not check and not yes:
        raise FleetError(
            f"{len(left.removed)} things would be removed",
            f"see them with 'vllm-fleet leave --fleet {fleet} {host} --check', and add --yes to remove them",
            host=host,
            code=ErrorCode.REFUSED,
        )
    if not check and left.removed:
        variables = {
            "fleet_leave_host": host,
            "fleet_leave_packages": str(packages).lower(),
            "fleet_leave_models_kept": str(keep_models).lower(),
            "fleet_leave_drained": str(not no_drain).lower(),
        }
        run_playbook("leave.yml", directory / "fleet.yml", variables, password)
    if json:
        print_json(
            {
                "fleet": fleet,
                "host": host,
                "check": check,
                "removed": list(left.removed),
                "kept": [dict(row) for row in left.kept],
            }
        )
        return
    word = "would remove" if check else "removed"
    for what in left.removed:
        print_text(f"{host}: {word} {what}")
    for row in left.kept:
        print_text(f"{host}: {'would keep' if check else 'kept'} {row['what']}: {row['why']}")
    if not left.removed:
        print_text(f"{host}: nothing of the toolkit is left")
    if not check:
        print_note(
            f"{host} is still in {fleet}/fleet.yml: remove it there and run site.yml, or site.yml sets it up again and "
            "the gateways keep it as a server that is down"
        )
