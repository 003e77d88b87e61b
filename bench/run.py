"""``python -m bench.run``: the speed of the unchanged fleet, side by side with its peers, on real SSH.

Boots one host, deploys it for real, lets every contender look at it through N addresses, in turns, prints a table
and writes ``docs/performance.md``. Leaves nothing behind, also when it is interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from bench import contenders, fleets, machine, measure, report, results, scale, scale_report, steps, target
from bench.contenders import Contender
from lab import state
from lab.progress import Heartbeat
from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import FleetError

_RUNS = 3
#: The first run of each contender is thrown away: it fills caches and compiles Python.
_WARM_UP_HOSTS = 10
_DEPLOY_SECONDS = 900.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class _Bench:
    """One benchmark at work."""

    target: target.Target
    work: Path
    fleets: Path
    samples: dict[tuple[str, int], list[measure.Sample]] = field(default_factory=dict)

    def measured(
        self, what: str, command: Sequence[str], environment: Mapping[str, str], timeout: float
    ) -> tuple[str, measure.Sample]:
        """Runs a command in the target's network, from the checkout.

        Raises:
            FleetError: it failed; the end of what it printed is on stderr then.
        """
        log = self.work / "log"
        common = contenders.common_environment(self.work / "home")
        code, sample = measure.run(
            self.target.inside(command), {**common, **environment}, paths.root(), log, timeout, self.target.cpu
        )
        output = log.read_text(encoding="utf-8", errors="replace")
        if code != 0:
            raise self.failed(f"{what} ended with {code}", output)
        return output, sample

    def failed(self, message: str, output: str) -> FleetError:
        """The error of a run that does not count, after the end of its output."""
        print("\n".join(output.splitlines()[-25:]), file=sys.stderr)
        return FleetError(message, "its output is above", code="work-failed")

    def run(self, contender: Contender, count: int) -> measure.Sample:
        """Runs a contender and checks that it found every host unchanged."""
        # Half a minute to start, and for each host three times what the slowest peer takes.
        timeout = 30 + 15.0 * count
        output, sample = self.measured(contender.name, contender.command(count), contender.environment, timeout)
        if fault := contender.fault(count, output):
            raise self.failed(f"{contender.name} on {count} hosts does not count: {fault}", output)
        return sample

    def keep(self, contender: Contender, count: int, progress: str) -> None:
        """Runs a contender, keeps the sample and tells it."""
        sample = self.run(contender, count)
        self.samples.setdefault((contender.name, count), []).append(sample)
        print(
            f"bench: {progress}{count} hosts, {contender.name}: {sample.wall:.1f} s, controller "
            f"{sample.controller:.1f} s of CPU",
            file=sys.stderr,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit code is 0 when it is done, else that of its error."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--hosts", type=_numbers, default=[100, 300], metavar="N,N", help="default: 100,300")
    parser.add_argument(
        "--task-hosts",
        type=_numbers,
        default=[10, 30],
        metavar="N,N",
        help="for Ansible's tasks, which take minutes (default: 10,30; BENCH_FULL=1: the same as --hosts)",
    )
    parser.add_argument("--runs", type=int, default=_RUNS, help=f"of each fast contender (default: {_RUNS})")
    parser.add_argument("--json", action="store_true", help="print data instead of the table")
    parser.add_argument("--no-write", action="store_true", help="leave docs/performance.md as it is")
    parser.add_argument("--scale-only", action="store_true", help="only Pulumi programs of 1000 hosts, without root")
    chosen = parser.parse_args(arguments)
    if chosen.scale_only:
        return _scale_only(chosen.runs, chosen.json, not chosen.no_write)
    slow = chosen.hosts if os.environ.get("BENCH_FULL") == "1" else chosen.task_hosts
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        found = _bench(chosen.hosts, slow, chosen.runs)
    except FleetError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    except KeyboardInterrupt as fault:
        print(f"bench: ended by {fault or 'an interrupt'}; the target is removed", file=sys.stderr)
        return 130
    if not chosen.no_write:
        (paths.root() / "docs").mkdir(exist_ok=True)
        write_atomically(paths.root() / "docs" / "performance.md", report.document(found))
    print(json.dumps(_record(found), indent=2) if chosen.json else report.text(found))
    return 0


def _tell(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr)


def _scale_only(runs: int, as_json: bool, write: bool) -> int:
    """Measures Pulumi programs alone and puts them into the document that is there."""
    try:
        rows = scale.measured(scale.HOSTS, runs, _tell)
    except FleetError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    file = paths.root() / "docs" / "performance.md"
    if write:
        write_atomically(file, scale_report.replaced(file.read_text(encoding="utf-8"), rows))
    record = [row.record() for row in rows]
    print(json.dumps(record, indent=2) if as_json else "\n".join(scale_report.text(rows)).replace("**", ""))
    return 0


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """Ends the benchmark once; what cleans up after it is not interrupted again."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


def _numbers(text: str) -> list[int]:
    found = sorted({int(word) for word in text.split(",")})
    for number in found:
        fleets.address(number)  # refuses what there are no addresses for
    return found


def _bench(hosts: list[int], slow_hosts: list[int], runs: int) -> report.Report:
    measure.adopt_orphans()
    with state.locked("bench"), _work_folder() as work:
        venv = contenders.pyinfra_environment()
        with target.running(work) as found:
            bench = _Bench(found, work, work / "fleets")
            counts = sorted({1, _WARM_UP_HOSTS, *hosts, *slow_hosts})
            try:
                for count in counts:
                    fleets.write(bench.fleets, count, found.host_key, found.private_key)
                _deploy(bench)
                all_of_them = contenders.contenders(found, work, counts, bench.fleets, venv)
                _measure_all(bench, all_of_them, hosts, slow_hosts, runs)
                parts = _measure_parts(bench, hosts[0], runs)
            finally:
                for count in counts:
                    shutil.rmtree(paths.run_dir(fleets.fleet_name(count)), ignore_errors=True)
            rows = [results.Row(name, count, tuple(each)) for (name, count), each in bench.samples.items()]
            own = next(row for row in rows if row.name == contenders.DRIFT and row.hosts == hosts[0])
            parts.append(results.Row(steps.PROBE, own.hosts, own.samples))
            checks = (work / "deploy.py").read_text(encoding="utf-8").count("_sudo=True")
            described = machine.describe(found.root, venv / "bin/pyinfra")
        programs = scale.measured(scale.HOSTS, runs, _tell)
        return report.Report(hosts, rows, parts, described, checks, programs)


@contextmanager
def _work_folder() -> Iterator[Path]:
    work = paths.cache_dir() / "bench" / "work"
    shutil.rmtree(work, ignore_errors=True)  # what a killed run left
    (work / "home").mkdir(parents=True)
    work.chmod(0o700)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _deploy(bench: _Bench) -> None:
    """Brings the target to its plan through one of its addresses, with the project's own playbook."""
    command = [*contenders.site_command(bench.fleets)(1), "--limit", fleets.host_name(1)]
    with Heartbeat("bench: deploying the target (ansible-playbook site.yml)"):
        bench.measured("the deployment", command, contenders.site_environment(), _DEPLOY_SECONDS)


def _measure_all(
    bench: _Bench, all_of_them: Sequence[Contender], hosts: list[int], slow_hosts: list[int], runs: int
) -> None:
    """All contenders, in turns, so that a busy minute of the machine hits all of them."""
    for contender in all_of_them:
        with Heartbeat(f"bench: warming up {contender.name}"):
            bench.run(contender, 1 if contender.slow else _WARM_UP_HOSTS)
    for number in range(1, runs + 1):
        for count in hosts:
            for contender in all_of_them:
                if not contender.slow:
                    bench.keep(contender, count, f"run {number} of {runs}, ")
    for count in slow_hosts:
        for contender in all_of_them:
            if contender.slow or count not in hosts:
                bench.keep(contender, count, "")


def _measure_parts(bench: _Bench, count: int, runs: int) -> list[results.Row]:
    """The steps of which a probe consists, each with those before it."""
    found = []
    known_hosts = bench.fleets / fleets.fleet_name(count) / "known_hosts"
    for step in steps.STEPS:
        command = [
            sys.executable,
            "-m",
            "bench.steps",
            step,
            str(count),
            str(bench.target.private_key),
            str(known_hosts),
        ]
        with Heartbeat(f"bench: {count} hosts, {step}"):
            samples = [bench.measured(step, command, {}, 30 + 15.0 * count)[1] for _ in range(runs)]
        found.append(results.Row(step, count, tuple(samples)))
    return found


def _record(found: report.Report) -> dict[str, object]:
    return {
        "rows": [row.record() for row in found.rows],
        "growth": [each.record() for each in results.growths(found.rows, found.sizes)],
        "scale": [row.record() for row in found.scale],
        "steps": [row.record() for row in found.parts],
        "goals": [text.replace("**", "") for text in report.goals(found.rows)],
        "machine": dict(found.machine),
    }


if __name__ == "__main__":
    sys.exit(main())
