"""One run at a time changes a fleet: the lock of a controller, with its owner and its age."""

from __future__ import annotations

import fcntl
import json
import time

from vllm_fleet.base import paths
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.operate import run_owner


def take(fleet: str, pid: int) -> None:
    """Takes the lock of a fleet for the rest of a run. That of a run that has ended is taken over.

    Runs from other machines are kept apart on the hosts, by the owners of drains and of releases on trial.

    Args:
        fleet: the fleet's name.
        pid: the process that runs as long as the run does; with its end the lock is free.

    Raises:
        FleetError: another run has it.
    """
    owner, file = run_owner.name_run(pid), paths.run_dir(fleet) / "run.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", encoding="utf-8") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        opened.seek(0)
        other, since = _read(opened.read())
        if other and other != owner and not run_owner.is_gone(other):
            raise FleetError(
                f"another run works on the fleet {fleet}: {other}, for {_age(time.time() - since)}",
                "wait until it has ended, or end it; its hosts go back by themselves",
                code=ErrorCode.REFUSED,
            )
        if other != owner:
            opened.seek(0)
            opened.truncate()
            opened.write(json.dumps({"owner": owner, "since": time.time()}) + "\n")


def _read(text: str) -> tuple[str, float]:
    try:
        record = json.loads(text)
        return str(record["owner"]), float(record["since"])
    except (ValueError, KeyError, TypeError):
        return "", 0.0


def _age(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
