"""The name of a run, by which other runs know whose drain or trial they meet, and whether that run still lives."""

from __future__ import annotations

import getpass
import platform
import re

from vllm_fleet.base import processes

_OWNER = re.compile(r"(?P<user>.*)@(?P<machine>.*) \(process (?P<pid>[0-9]{1,10}), started (?P<started>[0-9]{1,20})\)")


def name_run(pid: int) -> str:
    """The name of the run of a process.

    Args:
        pid: the process that runs as long as the run does.
    """
    process = processes.find_process(pid)
    started = process.started if process else 0
    return f"{getpass.getuser()}@{platform.node()} (process {pid}, started {started})"


def is_gone(owner: str) -> bool:
    """Whether the run of that name has ended: it was on this machine, and its process is no more.

    Args:
        owner: the name of a run, as a host gives it back; another machine's run counts as living.
    """
    found = _OWNER.fullmatch(owner)
    if found is None or found["machine"] != platform.node():
        return False
    process = processes.find_process(int(found["pid"]))
    return process is None or process.started != int(found["started"])
