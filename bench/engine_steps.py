"""A fleet taken through the real Pulumi engine, in a cloud that is rehearsed: the time and CPU of each step.

A fleet is created, previewed again and brought up again unchanged; a run counts only if every host exists and the
second run changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import scale
from bench.measure import busy_processors, children_seconds, machine_seconds
from lab.rehearsal.cloud import Cloud
from lab.rehearsal.serve import serve
from lab.rehearsal.stage import Stage, build, end_left
from vllm_fleet.base import processes
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.heartbeat import Heartbeat
from vllm_fleet.edge.pulumi_cli import run_pulumi

_CLOUD = "aws"
_LONGEST_SECONDS = 4 * 3600.0
_LOOK_SECONDS = 0.2
_QUIET = ("--suppress-outputs", "--suppress-progress")
#: Step -> the words of the command.
STEPS: Mapping[str, tuple[str, ...]] = {
    "up, nothing exists": ("up", "--yes", "--skip-preview", *_QUIET),
    "preview, unchanged": ("preview", *_QUIET),
    "up, unchanged": ("up", "--yes", "--skip-preview", *_QUIET),
}
#: What the fleet is made with: the state is saved after each step of the engine, or once at the end.
EACH_STEP, AT_END = "after each step", "at the end"


@dataclass(frozen=True)
class Row:
    """One command of ``pulumi`` on a fleet.

    Attributes:
        hosts: number of serving hosts.
        saved: when the engine saved the state.
        step: a key of :data:`STEPS`.
        resources: resources of the cloud, not counting the stack's own.
        seconds: from its start to its end.
        engine_cpu: CPU seconds of the engine and its language host.
        program_cpu: those of the Python program.
        provider_cpu: those of the provider of the keys and files.
        cloud_cpu: those of the rehearsed cloud, which no user pays.
        engine_mib: peak memory of the engine.
        others: processors that other programs kept busy, before the step or during it.
    """

    hosts: int
    saved: str
    step: str
    resources: int
    seconds: float
    engine_cpu: float
    program_cpu: float
    provider_cpu: float
    cloud_cpu: float
    engine_mib: float
    others: float


def measure(hosts: int, saved: str, project: Path) -> Iterator[Row]:
    """Takes a fleet through all steps.

    Args:
        hosts: number of serving hosts.
        saved: :data:`EACH_STEP` or :data:`AT_END`.
        project: a folder that nothing else uses; it is removed at the end.

    Raises:
        FleetError: a step failed, a host is missing, or an unchanged fleet was changed.
    """
    more = {"PULUMI_SKIP_CHECKPOINTS": "true"} if saved == AT_END else {}
    with _emptied(project):
        cloud = Cloud(project / "cloud.db")
        with serve(cloud, None, (_CLOUD,)) as served:
            stage = build(project, scale.FLEET, scale.fleet_text(_CLOUD, hosts), {**served, **more})
            made: list[str] = []
            for step, words in STEPS.items():
                with Heartbeat(f"bench: {hosts} hosts, {step}, state saved {saved}"):
                    row = _run(stage, words)
                made = made or list(cloud.log)
                _check(stage, cloud, hosts, made)
                yield Row(hosts, saved, step, len(cloud.records), **row)


@contextmanager
def _emptied(project: Path) -> Iterator[None]:
    def clear() -> None:
        end_left(project)
        shutil.rmtree(project, ignore_errors=True)

    clear()  # what a killed run left behind
    project.mkdir(parents=True)
    try:
        yield
    finally:
        clear()


def _run(stage: Stage, words: Sequence[str]) -> dict[str, float]:
    """Runs a command of ``pulumi``; returns its figures, by the names of :class:`Row`."""
    load = busy_processors()
    began, own, children, busy = time.monotonic(), time.process_time(), children_seconds(), machine_seconds()
    with _Watch() as watch:
        done = run_pulumi(
            *stage.words(*words)[1:],
            cwd=stage.project,
            environment=stage.environment,
            timeout_seconds=_LONGEST_SECONDS,
        )
    seconds, children = time.monotonic() - began, children_seconds() - children
    own = time.process_time() - own - watch.own_cpu
    if done.returncode:
        print("\n".join((done.stdout + done.stderr).splitlines()[-25:]), file=sys.stderr)
        raise FleetError(f"pulumi {words[0]} ended with {done.returncode}", "see above", code=ErrorCode.WORK_FAILED)
    program, provider = watch.cpu("program"), watch.cpu("provider")
    return {
        "seconds": seconds,
        "engine_cpu": children - program - provider,
        "program_cpu": program,
        "provider_cpu": provider,
        "cloud_cpu": own,
        "engine_mib": watch.peak_mib,
        "others": max(load, (machine_seconds() - busy - own - children - watch.own_cpu) / seconds),
    }


def _check(stage: Stage, cloud: Cloud, hosts: int, made: Sequence[str]) -> None:
    known = json.loads((stage.folder / "stack.json").read_text(encoding="utf-8"))["hosts"]
    lived = {record.id for record in cloud.records if record.shape}
    addresses = {host["address"] for host in known.values()}
    wanted = hosts + scale.GATEWAYS
    if not {host["id"] for host in known.values()} == lived or len(lived) != wanted or len(addresses) != wanted:
        raise FleetError(
            f"{wanted} hosts were wanted; the cloud has {len(lived)}, stack.json {len(known)} with {len(addresses)} "
            "addresses",
            code=ErrorCode.WORK_FAILED,
        )
    if cloud.log != made:
        raise FleetError(
            f"an unchanged fleet was changed: {', '.join(cloud.log[len(made) :][:5])}", code=ErrorCode.WORK_FAILED
        )


class _Watch:
    """Looks at the children of this process several times a second; what one used after the last look is the engine's.

    Attributes:
        own_cpu: CPU seconds of looking.
        peak_mib: peak memory of the engine.
    """

    def __init__(self) -> None:
        self.own_cpu = 0.0
        self.peak_mib = 0.0
        #: Number of a process -> its part and its CPU seconds.
        self._used: dict[int, tuple[str, float]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def cpu(self, part: str) -> float:
        """CPU seconds of the processes of a part."""
        return sum(used for its_part, used in self._used.values() if its_part == part)

    def _look(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            for pid in _descendants(os.getpid()):
                # One that has ended meanwhile was counted at the look before.
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    self._take(pid)
            self.own_cpu = time.thread_time()

    def _take(self, pid: int) -> None:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        part = part_of(processes.command_line(pid))
        if part == "engine" and pid in self._used:
            # A process that ends has no command line any more.
            part, _ = self._used[pid]
        fields = stat[stat.rindex(")") + 2 :].split()
        self._used[pid] = (part, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
        if part == "engine":
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
            peak = re.search(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)
            self.peak_mib = max(self.peak_mib, int(peak[1]) / 1024 if peak else 0)


def _descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                yield int(child)
                yield from _descendants(int(child))


def part_of(words: Sequence[str]) -> str:
    """The part of a run that a process is, from its command line: ``program``, ``provider`` or ``engine``."""
    names = {Path(word).name for word in words}
    if "pulumi-language-python-exec" in names:
        return "program"
    return "provider" if {"pulumi.dynamic", "pulumi-resource-pulumi-python"} & names else "engine"
