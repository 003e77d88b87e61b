"""Runs a playbook of the project with its output on the terminal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from vllm_fleet.base import paths
from vllm_fleet.base.errors import ErrorCode, FleetError


def run_playbook(name: str, inventory: Path, variables: Mapping[str, str], become_password: str | None = None) -> None:
    """Runs ``playbooks/NAME`` to its end; its output goes to standard error.

    Args:
        name: the file.
        inventory: the fleet.yml.
        variables: extra variables.
        become_password: the password for sudo on the hosts. Ansible gets it on standard input.

    Raises:
        FleetError: there is no ``ansible-playbook``, or it failed.
    """
    program = Path(sys.executable).with_name("ansible-playbook")
    words = [str(program), "-i", str(inventory), str(paths.root() / "playbooks" / name)]
    for key, value in sorted(variables.items()):
        words += ["-e", f"{key}={value}"]
    if become_password:
        words += ["--become-password-file", "-"]
    try:
        done = subprocess.run(
            words, cwd=paths.root(), check=False, stdout=sys.stderr, input=become_password, encoding="utf-8"
        )
    except FileNotFoundError:
        raise FleetError(f"{program} is missing", "run 'make venv'") from None
    if done.returncode:
        raise FleetError(
            f"playbooks/{name} ended with exit code {done.returncode}",
            "see its output above; run the same command again to continue",
            code=ErrorCode.WORK_FAILED,
        )
