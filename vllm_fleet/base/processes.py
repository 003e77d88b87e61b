"""The processes of this machine, found and ended by number and start time. Linux; standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """One process for its whole life: a process number that is used again has another start.

    Attributes:
        pid: its number.
        started: when it began, in clock ticks since the machine's boot.
        parent: the number of its parent.
    """

    pid: int
    started: int
    parent: int


def parse_stat(text: str) -> Process:
    """Reads ``/proc/<pid>/stat``; the name in it may hold blanks and brackets."""
    number, rest = text.split(" ", 1)
    fields = rest[rest.rindex(")") + 2 :].split()
    return Process(pid=int(number), parent=int(fields[1]), started=int(fields[19]))


def find_process(pid: int) -> Process | None:
    """The running process with that number; None if it has ended or is a zombie."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if text[text.rindex(")") + 2] == "Z" else parse_stat(text)


def process_ids() -> Iterator[int]:
    """The numbers of all processes."""
    return (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())


def find_descendants(pid: int) -> list[Process]:
    """A process and all that it and its children have started, if it runs; each comes after its parent."""
    by_parent: dict[int, list[Process]] = {}
    for each in filter(None, map(find_process, process_ids())):
        by_parent.setdefault(each.parent, []).append(each)
    first = find_process(pid)
    found = [first] if first else []
    for process in found:
        found += by_parent.get(process.pid, [])
    return found


def command_line(pid: int) -> list[str]:
    """The words that a process was started with; empty if it has ended or its command line cannot be read."""
    return _strings(pid, "cmdline")


def environment_of(pid: int) -> list[str]:
    """The ``NAME=value`` entries that a process was started with; empty if it has ended or they cannot be read."""
    return _strings(pid, "environ")


def _strings(pid: int, file: str) -> list[str]:
    try:
        content = (_PROC / str(pid) / file).read_bytes()
    except OSError:
        return []
    text = content.decode(errors="replace").rstrip("\0")
    return text.split("\0") if text else []


def kill_process(process: Process) -> None:
    """Kills exactly that process; does nothing when it has ended, whichever process has its number now.

    The signal goes through a pidfd that is opened before the process is looked up once more.
    """
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(process.pid)
        try:
            now = find_process(process.pid)
            if now and now.started == process.started:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)
