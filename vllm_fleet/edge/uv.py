"""Runs uv, the installer that the project pins its environments with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.paths import cache_dir, root

# Two gigabytes over a slow line still fit into this.
_TIMEOUT_SECONDS = 3600


def uv_program() -> str:
    """The path of uv: from the project's environment, else from PATH.

    Raises:
        FleetError: uv is not installed.
    """
    folders = (root() / ".venv" / "bin", Path(sys.executable).parent)
    own = next((folder / "uv" for folder in folders if (folder / "uv").is_file()), None)
    program = str(own) if own else shutil.which("uv")
    if program is None:
        raise FleetError(
            "uv is neither in the project's environment nor on PATH",
            hint="install it with `pip install uv`, then run the command again",
            code=ErrorCode.WORK_FAILED,
        )
    return program


def run_uv(arguments: Sequence[str], what: str) -> None:
    """Runs uv with the project's package cache; its output goes to stderr.

    Args:
        arguments: the arguments of uv.
        what: the purpose of the run, for the error message.

    Raises:
        FleetError: uv failed, or took longer than an hour.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    # No interpreter without a pin.
    environment |= {"UV_CACHE_DIR": str(cache_dir() / "uv"), "UV_PYTHON_DOWNLOADS": "never"}
    try:
        done = subprocess.run(
            [uv_program(), *arguments], env=environment, stdout=sys.stderr, timeout=_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise FleetError(
            f"{what}: uv did not finish within {_TIMEOUT_SECONDS} s",
            hint="check the network, then run the command again: finished downloads are kept",
            code=ErrorCode.WORK_FAILED,
        ) from error
    if done.returncode != 0:
        raise FleetError(
            f"{what}: uv ended with {done.returncode}",
            hint="its own message is above; finished downloads are kept, so a second run continues",
            code=ErrorCode.WORK_FAILED,
        )


def group_environment(group: str, program: str) -> Path:
    """The virtual environment of a dependency group alone, locked with hashes by ``uv.lock``; made if it is missing.

    Args:
        group: the group in ``pyproject.toml``.
        program: a program that it must have.

    Raises:
        FleetError: uv failed, or the group has no such program.
    """
    base = cache_dir() / "groups"
    base.mkdir(parents=True, exist_ok=True)
    lock, venv = base / f"{group}.part", base / group
    what, project = f"{program} of the group {group}", ("--project", str(root()))
    # Only the exported part is compared: the lock file has many packages that the group does not depend on.
    run_uv(
        ["export", "--quiet", "--frozen", "--only-group", group, "--no-emit-project", "-o", str(lock), *project], what
    )
    text = "".join(line for line in lock.read_text(encoding="utf-8").splitlines(True) if not line.startswith("#"))
    done = venv / "requirements.txt"
    if done.is_file() and done.read_text(encoding="utf-8") == text:
        return venv
    run_uv(["venv", "--quiet", "--clear", "--python", sys.executable, str(venv)], what)
    run_uv(
        ["pip", "install", "--quiet", "--require-hashes", "--python", str(venv / "bin/python"), "-r", str(lock)], what
    )
    if not (venv / "bin" / program).is_file():
        raise FleetError(f"the group {group!r} has no {program}", "see pyproject.toml", "uv.lock")
    done.write_text(text, encoding="utf-8")
    return venv
