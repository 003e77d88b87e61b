"""The private key of a fleet on the controller: what keeps ``ssh`` from logging in with it."""

from __future__ import annotations

import os
from pathlib import Path

from vllm_fleet.base import paths, private_keys
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet import stack
from vllm_fleet.fleet.plan import Plan

#: In the environment of workers and of AWX: the key of the fleet is in an SSH agent, and no file of it is read.
OF_AGENT = {"VLLM_FLEET_SSH_KEY": "agent"}


def is_of_agent() -> bool:
    """Whether the private keys are in an SSH agent, so that the file that a fleet names is not there."""
    return all(os.environ.get(name) == value for name, value in OF_AGENT.items())


def file_error(file: Path, hint: str = "") -> FleetError | None:
    """Why ``ssh`` cannot use a file as a private key; None: nothing is known to be wrong.

    Args:
        file: the key.
        hint: what to do where it is missing; empty: correct the path.
    """
    fault = private_keys.private_key_fault(file)
    if fault is None:
        return None
    # With a public key, ssh takes the private one from an agent.
    if "SSH_AUTH_SOCK" in os.environ and paths.file_fault(file) is None and private_keys.is_public_key(file):
        return None
    return fault.error(hint)


def fleet_error(plan: Plan) -> FleetError | None:
    """What is wrong with the private key that a fleet names; None also where the first ``pulumi up`` will write it."""
    own = plan.access.ssh_private_key_file
    if not own or is_of_agent():
        return None
    file = paths.absolute(plan.directory / own)
    makes_key = not plan.access.ssh_authorised_keys and any(host.cloud != "static" for host in plan.hosts)
    is_made = makes_key and file == paths.absolute(plan.directory / "ssh" / "id_ed25519")
    if is_made and not paths.is_there(file) and not stack.is_written(plan):
        return None
    hint = f"run '{stack.up_command(plan.fleet, '--refresh')}' to write it again" if is_made else ""
    if makes_key and not is_made:
        hint = "correct the path; the key that the stack makes is ssh/id_ed25519"
    fault = file_error(file, hint)
    return plan.document.error_about(("access", "ssh_private_key_file"), fault) if fault else None
