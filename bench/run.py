"""``python -m bench.run``: the time to check an unchanged fleet over real SSH, for this project and its peers.

Boots one host, deploys it, lets every contender check it through N addresses, in turns, prints a table and writes
``docs/performance.md``. Removes the host at the end, also after an interrupt.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from bench import contenders, fleets, machine, measure, report, results, scale, scale_report, steps, target
from bench.contenders import Contender
from bench.markdown import replace_section
from lab import state
from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.heartbeat import Heartbeat
from vllm_fleet.edge import uv

_RUNS = 3
#: The first run of each contender does not count: it fills caches and compiles Python.
_WARM_UP_HOSTS = 10
_DEPLOY_SECONDS = 900.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class _Bench:
    """A running benchmark."""

    target: target.Target
    work: Path
    fleets: Path
    samples: dict[tuple[str, int], list[measure.Sample]] = field(default_factory=dict)

    def run_measured(
        self, what: str, command: Sequence[str], environment: Mapping[str, str], timeout: float
    ) -> tuple[str, measure.Sample]:
        """Runs a command in the target's network, from the checkout.

        Raises:
            FleetError: it failed; the end of its output is on stderr then.
        """
        log = self.work / "log"
        common = contenders.common_environment(self.work / "home")
        code, sample = measure.run(
            self.target.inside(command),
            {**common, **environment},
            paths.root(),
            log,
            timeout,
            [self.target.cpu] if self.target.cpu else [],
        )
        output = log.read_text(encoding="utf-8", errors="replace")
        if code != 0:
            raise self.failure(f"{what} ended with {code}", output)
        return output, sample

    def failure(self, message: str, output: str) -> FleetError:
        """Prints the end of the output of a run that does not count, and returns the error."""
        print("\n".join(output.splitlines()[-25:]), file=sys.stderr)
        return FleetError(message, "its output is above", code=ErrorCode.WORK_FAILED)

    def run(self, contender: Contender, count: int) -> measure.Sample:
        """Runs a contender and checks that it found every host unchanged."""
        # Half a minute to start, and three times the time of the slowest peer for each host.
        timeout = 30 + 15.0 * count
        output, sample = self.run_measured(contender.name, contender.command(count), contender.environment, timeout)
        if fault := contender.fault(count, output):
            raise self.failure(f"{contender.name} on {count} hosts does not count: {fault}", output)
        return sample

    def keep(self, contender: Contender, count: int, progress: str) -> None:
        """Runs a contender, keeps the sample and prints it."""
        sample = self.run(contender, count)
        self.samples.setdefault((contender.name, count), []).append(sample)
        print(
            f"bench: {progress}{count} hosts, {contender.name}: {sample.wall:.1f} s, controller "
            f"{sample.controller:.1f} s of CPU",
            file=sys.stderr,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit code is 0, or that of the error."""
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
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--no-write", action="store_true", help="leave docs/performance.md as it is")
    parser.add_argument("--scale-only", action="store_true", help="only Pulumi programs of 1000 hosts, without root")
    chosen = parser.parse_args(arguments)
    if chosen.scale_only:
        return _scale_only(chosen.runs, chosen.json, not chosen.no_write)
    slow = chosen.hosts if os.environ.get("BENCH_FULL") == "1" else chosen.task_hosts
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        result = _bench(chosen.hosts, slow, chosen.runs)
    except FleetError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    except KeyboardInterrupt as fault:
        print(f"bench: ended by {fault or 'an interrupt'}; the target is removed", file=sys.stderr)
        return 130
    if not chosen.no_write:
        (paths.root() / "docs").mkdir(exist_ok=True)
        write_atomically(paths.root() / "docs" / "performance.md", report.document(result))
    print(json.dumps(_record(result), indent=2) if chosen.json else report.text(result))
    return 0


def _print_progress(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr)


def _scale_only(runs: int, as_json: bool, write: bool) -> int:
    """Measures Pulumi programs only and replaces their section in the document."""
    try:
        rows = scale.measure_programs(scale.HOSTS, runs, _print_progress)
    except FleetError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    file = paths.root() / "docs" / "performance.md"
    if write:
        write_atomically(file, replace_section(file.read_text(encoding="utf-8"), scale_report.section(rows)))
    record = [row.record() for row in rows]
    print(json.dumps(record, indent=2) if as_json else "\n".join(scale_report.text(rows)).replace("**", ""))
    return 0


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """Ends the benchmark; later signals do not interrupt the clean-up."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


def _numbers(text: str) -> list[int]:
    numbers = sorted({int(word) for word in text.split(",")})
    for number in numbers:
        fleets.address(number)  # raises if there is no such address
    return numbers


def _bench(hosts: list[int], slow_hosts: list[int], runs: int) -> report.Report:
    measure.adopt_orphans()
    with state.locked("bench"), contenders.work_folder() as work:
        venv = uv.group_environment("bench", "pyinfra")
        with target.running(work) as host:
            bench = _Bench(host, work, work / "fleets")
            counts = sorted({1, _WARM_UP_HOSTS, *hosts, *slow_hosts})
            try:
                for count in counts:
                    fleets.write(bench.fleets, count, host.host_key, host.private_key)
                _deploy(bench)
                all_of_them = contenders.contenders(host, work, counts, bench.fleets, venv)
                _measure_all(bench, all_of_them, hosts, slow_hosts, runs)
                parts = _measure_parts(bench, hosts[0], runs)
            finally:
                for count in counts:
                    shutil.rmtree(paths.run_dir(fleets.fleet_name(count)), ignore_errors=True)
            rows = [results.Row(name, count, tuple(samples)) for (name, count), samples in bench.samples.items()]
            own = next(row for row in rows if row.name == contenders.DRIFT and row.hosts == hosts[0])
            parts.append(results.Row(steps.PROBE, own.hosts, own.samples))
            checks = (work / "deploy.py").read_text(encoding="utf-8").count("_sudo=True")
            described = machine.describe(host.root, venv / "bin/pyinfra")
        programs = scale.measure_programs(scale.HOSTS, runs, _print_progress)
        return report.Report(hosts, rows, parts, described, checks, programs)


def _deploy(bench: _Bench) -> None:
    """Deploys the target through one of its addresses with site.yml."""
    command = [*contenders.site_command(bench.fleets)(1), "--limit", fleets.host_name(1)]
    with Heartbeat("bench: deploying the target (ansible-playbook site.yml)"):
        bench.run_measured("the deployment", command, contenders.site_environment(), _DEPLOY_SECONDS)


def _measure_all(
    bench: _Bench, all_of_them: Sequence[Contender], hosts: list[int], slow_hosts: list[int], runs: int
) -> None:
    """Runs all contenders in turns, so that a busy minute of the machine slows all of them."""
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
    """Measures the steps of a probe; each includes those before it."""
    rows = []
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
            samples = [bench.run_measured(step, command, {}, 30 + 15.0 * count)[1] for _ in range(runs)]
        rows.append(results.Row(step, count, tuple(samples)))
    return rows


def _record(result: report.Report) -> dict[str, object]:
    return {
        "rows": [row.record() for row in result.rows],
        "growth": [growth.record() for growth in results.growths(result.rows, result.sizes)],
        "scale": [row.record() for row in result.scale],
        "steps": [row.record() for row in result.parts],
        "goals": [text.replace("**", "") for text in report.goals(result.rows)],
        "machine": dict(result.machine),
    }


if __name__ == "__main__":
    sys.exit(main())
