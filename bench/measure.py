"""What a command costs: wall time, CPU of the controller's whole process tree, CPU of the target's cgroup.

The controller's part is taken from the kernel's accounting of waited children, in which every descendant counts:
this process adopts whatever its commands leave behind (``ssh`` masters that persist), ends it and waits for it.
So no cgroup is needed for it, and what a tool leaves running is neither forgotten nor of use to its next run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_fleet.base.errors import FleetError

_PR_SET_CHILD_SUBREAPER = 36
_CGROUPS = Path("/sys/fs/cgroup")
_END_SECONDS = 5.0
#: A host's sshd ends its sessions a moment after the client is gone.
_SETTLE_SECONDS = 0.4


@dataclass(frozen=True)
class Sample:
    """One run of a command; all in seconds.

    Attributes:
        wall: from its start to its end.
        controller: CPU of the command and all its descendants.
        target: CPU of the target; None where the machine's cgroups do not tell it.
        others: CPU that everything else on the machine took in the meantime.
    """

    wall: float
    controller: float
    target: float | None
    others: float


def adopt_orphans(adopt: bool = True) -> None:
    """Makes this process the parent of every descendant that loses its own, or no longer.

    Raises:
        FleetError: the kernel does not know how.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0) != 0:
        raise FleetError("the benchmark cannot account for children of children", "it needs Linux 3.4 or later")


def cpu_stat(pid: int, base: Path = _CGROUPS) -> Path | None:
    """The file that counts the CPU time of a container, found by the first process in it.

    Cgroup v2 counts it in every group, also where (in a v1 hybrid) no controller is attached to it.

    Args:
        pid: the container's first process.
        base: where cgroups are mounted.
    """
    groups = _cgroup_file(pid).read_text(encoding="utf-8").splitlines()
    own = next((line.removeprefix("0::") for line in groups if line.startswith("0::")), None)
    if own is None:
        return None
    top = base / "unified" if (base / "unified").is_dir() else base
    # nspawn puts the host's processes into "payload", itself into "supervisor" beside it.
    file = top / own.split("/payload", 1)[0].lstrip("/") / "cpu.stat"
    return file if file.is_file() else None


def _cgroup_file(pid: int) -> Path:
    return Path(f"/proc/{pid}/cgroup")


def usage_seconds(text: str) -> float:
    """CPU seconds from the text of ``cpu.stat``."""
    fields = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    return int(fields["usage_usec"]) / 1e6


def busy_seconds(text: str) -> float:
    """CPU seconds that all processors have worked since boot, from the text of ``/proc/stat``."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = (int(field) for field in text.splitlines()[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    timeout_seconds: float,
    target: Path | None,
) -> tuple[int, Sample]:
    """Runs a command to its end and counts.

    Args:
        command: the command.
        environment: all of its environment.
        folder: where it runs.
        log: where standard output and errors go.
        timeout_seconds: when it is ended.
        target: the target's ``cpu.stat``.

    Returns:
        The exit code and what it cost.

    Raises:
        FleetError: it did not end in time.
    """
    before = set(_children())
    machine, used = _busy(), _usage(target)
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    controller = 0.0
    try:
        code, controller = _wait(process.pid, began + timeout_seconds)
        process.returncode = code  # it was waited for here, not by subprocess
        wall = time.monotonic() - began
    finally:
        controller += _end_others(before)
    if code is None:
        raise FleetError(
            f"'{' '.join(command[:6])} ...' did not end within {timeout_seconds:.0f} s", code="work-failed"
        )
    time.sleep(_SETTLE_SECONDS)
    after = _usage(target)
    of_target = None if used is None or after is None else after - used
    others = _busy() - machine - controller - (of_target or 0.0)
    return code, Sample(wall, controller, of_target, max(0.0, others))


def _busy() -> float:
    return busy_seconds(Path("/proc/stat").read_text(encoding="ascii"))


def _usage(file: Path | None) -> float | None:
    return usage_seconds(file.read_text(encoding="ascii")) if file else None


def _wait(pid: int, deadline: float) -> tuple[int | None, float]:
    """Exit code and CPU seconds of a child with its waited descendants; no code when it does not end in time."""
    pause = 0.001
    while time.monotonic() < deadline:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
    return None, 0.0


def _children() -> Iterator[int]:
    for task in Path("/proc/self/task").iterdir():
        yield from (int(pid) for pid in (task / "children").read_text(encoding="ascii").split())


def _end_others(keep: set[int]) -> float:
    """Ends all children but some, and the children that they leave; their CPU seconds.

    No other process can be hit: the number of a child is not given away before it was waited for.
    """
    total = 0.0
    began = time.monotonic()
    while pids := set(_children()) - keep:
        late = time.monotonic() > began + _END_SECONDS
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        for pid in pids:
            _, used = _wait(pid, time.monotonic() + 0.2)
            total += used
    return total
