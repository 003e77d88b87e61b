"""``python -m tools.alone NAME COMMAND...``: runs a command while no other run of that name works in this checkout."""

from __future__ import annotations

import fcntl
import subprocess
import sys

from vllm_fleet.base import paths


def run_alone(name: str, command: list[str]) -> int:
    """Runs a command when an earlier one of the same name has ended.

    Args:
        name: of the work, such as golden.
        command: the program and its arguments.

    Returns:
        The command's exit code.
    """
    folder = paths.root() / ".fleet"
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another 'make {name}' runs in this checkout; waiting for it to end", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(run_alone(sys.argv[1], sys.argv[2:]))
