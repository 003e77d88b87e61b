"""The cost of a command: wall time, CPU of the controller's whole process tree, CPU of the target's cgroup.

The controller's CPU comes from the kernel's accounting of children that were waited for, with all their descendants:
this process adopts the processes that a command leaves running (``ssh`` masters), ends them and waits for them. So it
needs no cgroup, it counts those processes, and the next run of the command cannot use them.
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

from vllm_fleet.base.errors import ErrorCode, FleetError

_PR_SET_CHILD_SUBREAPER = 36
_CGROUPS = Path("/sys/fs/cgroup")
_END_SECONDS = 5.0
#: A host's sshd ends its sessions a moment after the client is gone.
_SETTLE_SECONDS = 0.4
#: The load before a run is measured for this long.
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Sample:
    """One run of a command; all in seconds.

    Attributes:
        wall: from its start to its end.
        controller: CPU of the command and all its descendants.
        target: CPU of the target; None where the machine's cgroups do not count it.
        others: CPU that all other processes of the machine used meanwhile; None where the target's is unknown, which
            is then among theirs.
        before: processors that were busy just before the run.
    """

    wall: float
    controller: float
    target: float | None
    others: float | None
    before: float | None = None

    @property
    def load(self) -> float | None:
        """Processors that other programs kept busy, before or during the run; None if either was not measured."""
        if self.others is None or self.before is None:
            return None
        return max(self.others / self.wall, self.before)


def adopt_orphans(adopt: bool = True) -> None:
    """Makes this process the parent of every descendant that loses its own.

    Args:
        adopt: False ends it.

    Raises:
        FleetError: the kernel does not support it.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0) != 0:
        raise FleetError("this kernel cannot count the CPU of children of children", "use Linux 3.4 or later")


def cpu_stat(pid: int, base: Path = _CGROUPS) -> Path | None:
    """The file that counts the CPU time of a container, found by the first process in it.

    Cgroup v2 counts it in every group, even if (in a hybrid with v1) no controller is attached.

    Args:
        pid: the container's first process.
        base: where cgroups are mounted.
    """
    groups = _cgroup_file(pid).read_text(encoding="utf-8").splitlines()
    own = next((line.removeprefix("0::") for line in groups if line.startswith("0::")), None)
    if own is None:
        return None
    top = base / "unified" if (base / "unified").is_dir() else base
    # nspawn puts the processes of the host into "payload", itself into "supervisor" beside it.
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


def machine_seconds() -> float:
    """CPU seconds that all processors have worked since boot."""
    return busy_seconds(Path("/proc/stat").read_text(encoding="ascii"))


def children_seconds() -> float:
    """CPU seconds of the processes that this one has waited for, with theirs."""
    times = os.times()
    return times.children_user + times.children_system


def busy_processors(targets: Sequence[Path] = (), seconds: float = _LOOK_SECONDS) -> float:
    """How many processors are busy with other programs than the targets, over a short time.

    Args:
        targets: the ``cpu.stat`` of each target.
        seconds: how long to look.
    """
    busy, used, began = machine_seconds(), _usage(targets) or 0.0, time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    return max(0.0, machine_seconds() - busy - (_usage(targets) or 0.0) + used) / took


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    timeout_seconds: float,
    targets: Sequence[Path],
) -> tuple[int, Sample]:
    """Runs a command to its end and measures it.

    Args:
        command: the command.
        environment: its whole environment.
        folder: its working directory.
        log: the file for its standard output and errors.
        timeout_seconds: how long it may take.
        targets: the ``cpu.stat`` of each target; none where the machine's cgroups do not count it.

    Returns:
        The exit code and the cost.

    Raises:
        FleetError: it did not end in time.
    """
    before = set(_children())
    load = busy_processors(targets)
    machine, used = machine_seconds(), _usage(targets)
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    controller = 0.0
    try:
        code, controller = _wait(process.pid, began + timeout_seconds)
        process.returncode = code  # os.wait4 has taken it from subprocess
        wall = time.monotonic() - began
    finally:
        controller += _end_others(before)
    if code is None:
        raise FleetError(
            f"'{' '.join(command[:6])} ...' did not end within {timeout_seconds:.0f} s", code=ErrorCode.WORK_FAILED
        )
    time.sleep(_SETTLE_SECONDS)
    after = _usage(targets)
    of_target = None if used is None or after is None else after - used
    others = None if of_target is None else max(0.0, machine_seconds() - machine - controller - of_target)
    return code, Sample(wall, controller, of_target, others, load)


def _usage(files: Sequence[Path]) -> float | None:
    return sum(usage_seconds(file.read_text(encoding="ascii")) for file in files) if files else None


def _wait(pid: int, deadline: float) -> tuple[int | None, float]:
    """Exit code and CPU seconds of a child with its descendants; None as code if it does not end in time."""
    pause = 0.001
    while time.monotonic() < deadline:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
    return None, 0.0


def _children() -> Iterator[int]:
    for task in Path("/proc/self/task").iterdir():
        yield from (int(pid) for pid in (task / "children").read_text(encoding="ascii").split())


def _end_others(keep: set[int]) -> float:
    """Ends all children except some, with the children that these leave; returns their CPU seconds.

    It hits no other process: the kernel does not reuse the number of a child before the child was waited for.
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
