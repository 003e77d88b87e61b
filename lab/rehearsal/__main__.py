"""``python -m lab.rehearsal FLEET``: creates and destroys a fleet in emulated clouds.

Preview, up, refresh, up again, ``site.yml --check`` on the hosts, a destroy that protection refuses, destroy. It leaves
nothing behind, and first removes the rest of a killed rehearsal.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from infra import repair
from lab.rehearsal import ansible, script
from lab.rehearsal.cloud import Cloud, Record
from lab.rehearsal.existing import furnish
from lab.rehearsal.machines import Lab
from lab.rehearsal.serve import serve
from lab.rehearsal.stage import Stage, account_of, build, end_left
from vllm_fleet.base import paths
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.fleet import plan

#: The bridge on this machine during a rehearsal.
BRIDGE = "vf-rehearse"
_SUBNET = "10.78.0"
_MOST_HOSTS = 3


def say(text: str) -> None:
    """Prints one line of progress."""
    print(text, file=sys.stderr, flush=True)


class Times:
    """The phases of a rehearsal, with their durations and results."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, float, str]] = []

    def phase(self, name: str, work: Callable[[], str]) -> None:
        """Runs one phase and records its result."""
        say(f"{name} ...")
        start = time.monotonic()
        shown = work()
        self._rows.append((name, time.monotonic() - start, shown))
        say(f"  {shown}")

    def __str__(self) -> str:
        rows = [f"{name:<30} {seconds:7.1f} s  {shown}" for name, seconds, shown in self._rows]
        return "\n".join([*rows, f"{'together':<30} {sum(row[1] for row in self._rows):7.1f} s"])


def counts(output: str) -> str:
    """The resource counts in the output of ``pulumi``, in one line."""
    lines = output.split("Resources:\n", 1)[-1].splitlines()
    changes = [re.sub(r"\s+", " ", line).strip() for line in lines if re.match(r"\s+(\+|-|~|\d)", line)]
    return ", ".join(changes) or "nothing"


def rehearse(fleet: str, most_hosts: int) -> Times:
    """Runs the whole rehearsal of a fleet.

    Raises:
        FleetError: a phase has another result than expected.
    """
    text = script.copy(fleet, most_hosts)
    project = paths.root() / ".fleet" / "rehearsal" / fleet
    lab = Lab(BRIDGE, _SUBNET, project)
    times = Times()
    with _alone(project, lab, f"{fleet}{script.SUFFIX}"):
        cloud = Cloud(project / "cloud.db", lab.addresses)
        with serve(cloud, lab) as served:
            stage = build(project, f"{fleet}{script.SUFFIX}", text, served)
            fleet_plan = plan.load(stage.folder)
            script.properties(stage.folder, sorted(fleet_plan.spec.artifacts.models))
            cloud.account = account_of(stage.folder)
            existing = furnish(cloud, fleet_plan.hosts)
            lab.open()
            _play(stage, times, fleet_plan.spec.protect)
            if left := difference(existing, cloud.records):
                raise FleetError(f"destroy left another cloud than before: {left}", code=ErrorCode.WORK_FAILED)
    return times


def difference(before: Sequence[Record], after: Sequence[Record]) -> str:
    """What a stack that is gone has left in the cloud, deleted or changed; empty if nothing.

    Args:
        before: the records of the account.
        after: those after the stack.
    """
    were = {(record.type, record.id): record for record in before}
    are = {(record.type, record.id): record for record in after}
    words = [f"new {kind} {id_}" for kind, id_ in sorted(are.keys() - were.keys())]
    words += [f"gone {kind} {id_}" for kind, id_ in sorted(were.keys() - are.keys())]
    words += [
        f"changed {kind} {id_}" for kind, id_ in sorted(were.keys() & are.keys()) if were[kind, id_] != are[kind, id_]
    ]
    return ", ".join(words)


def _play(stage: Stage, times: Times, protect: bool) -> None:
    quiet = ("--skip-preview", "--yes", "--suppress-outputs")
    times.phase("pulumi preview", lambda: counts(stage.pulumi("preview")))
    times.phase("pulumi up", lambda: counts(stage.pulumi("up", *quiet)))
    times.phase("pulumi refresh", lambda: _unchanged(stage.pulumi("refresh", *quiet)))
    times.phase("pulumi up, again", lambda: _unchanged(stage.pulumi("up", *quiet)))
    times.phase("ansible site.yml --check", lambda: _checked(stage))
    times.phase("GPUs of the hosts", lambda: _vetoed(stage))
    if protect:
        times.phase("pulumi destroy, protected", lambda: _refused(stage))
        file = stage.folder / "fleet.yml"
        file.write_text(re.sub(r"(?m)^protect:.*\n", "", file.read_text()) + "\nprotect: false\n", encoding="utf-8")
        times.phase("pulumi up, protect: false", lambda: _unchanged(stage.pulumi("up", *quiet)))
    times.phase("pulumi destroy", lambda: counts(stage.pulumi("destroy", "--skip-preview", "--yes")))


def _unchanged(output: str) -> str:
    changes = counts(output)
    if not re.fullmatch(r"\d+ unchanged", changes):
        raise FleetError(f"a run that should change nothing reports: {changes}\n{output}", code=ErrorCode.WORK_FAILED)
    return changes


def _checked(stage: Stage) -> str:
    result = ansible.check(stage)
    if result.refused:
        return f"the plan is refused before any host is probed: {result.refused}"
    drift = ansible.drift_count(stage)
    if result.exit_code:
        raise FleetError(f"site.yml --check failed:\n{result.text}", code=ErrorCode.WORK_FAILED)
    counts_by_host = ", ".join(f"{host} {count}" for host, count in sorted(drift.items()))
    return f"probed {len(drift)} hosts; items that differ from the plan: {counts_by_host}"


def _vetoed(stage: Stage) -> str:
    vetoes = ansible.vetoes(stage)
    if bad := [f"{host}: {reason}" for host, reasons in vetoes.items() for reason in reasons]:
        raise FleetError("; ".join(bad), code=ErrorCode.WORK_FAILED)
    return f"{len(vetoes)} hosts answer with the key of the stack and match their class"


def _refused(stage: Stage) -> str:
    output = stage.pulumi("destroy", "--yes", check=False)
    hosts = re.findall(r"::([\w-]+)\" cannot be deleted", output)
    if not hosts:
        raise FleetError(f"a protected stack was destroyed:\n{output}", code=ErrorCode.WORK_FAILED)
    return f"refused, nothing was touched; protected: {', '.join(sorted(set(hosts)))}"


@contextmanager
def _alone(project: Path, lab: Lab, name: str) -> Iterator[None]:
    """Allows one rehearsal at a time on this machine; removes a killed one first, and all of this one at the end."""

    def clear() -> None:
        if ended := end_left(project) + len(repair.end_orphans()):
            say(f"ended {ended} processes that a killed run left")
        lab.close()
        shutil.rmtree(project, ignore_errors=True)
        shutil.rmtree(paths.run_dir(name), ignore_errors=True)
        if project.parent.is_dir() and not any(project.parent.iterdir()):
            project.parent.rmdir()

    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    with (paths.cache_dir() / "rehearsal.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        clear()
        project.mkdir(parents=True)
        try:
            yield
        finally:
            clear()


def main() -> int:
    """The command line; the exit code is 0, or that of the error."""
    parser = argparse.ArgumentParser(prog="python -m lab.rehearsal", description=__doc__)
    parser.add_argument("fleet", help="a folder under inventories/")
    parser.add_argument("--most-hosts", type=int, default=_MOST_HOSTS, help="the most hosts of a pool (default: 3)")
    chosen = parser.parse_args()
    if os.geteuid() != 0:
        say("error: the rehearsal boots real hosts, which needs root (run this as root)")
        return 2
    try:
        print(rehearse(chosen.fleet, chosen.most_hosts), flush=True)
    except FleetError as fault:
        for error in (fault, *fault.others):
            say(f"error: {error}")
        return fault.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
