"""``python -m bench.change``: the time of a changed file with a restart and of a new fleet, beside peers.

Boots lab hosts, each with a state of its own, lets every contender do the same work on them over SSH, looks on each
host whether it was done, and writes a section of ``docs/performance.md``. Removes the hosts at the end, also after an
interrupt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import change_peers, change_report, contenders, lab_fleet, measure, peers, results
from bench.lab_fleet import GATEWAY, LabFleet, names
from bench.markdown import replace_section
from lab import state
from vllm_fleet import inventory
from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.heartbeat import Heartbeat
from vllm_fleet.edge import uv
from vllm_fleet.host.manifest_items import Item

_HOSTS = (100, 300)
#: Ansible's tasks take minutes: they run on few hosts, and the report has the straight line through both.
_TASK_HOSTS = {change_report.CHANGE: (10, 30), change_report.NEW: (4, 10)}
_RUNS = 3
_FIRST_VALUE = 16
#: What a run may take: to start, and for each host.
_START_SECONDS, _SECONDS_PER_HOST = 120.0, 60.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class _Bench:
    """A running benchmark.

    Attributes:
        fleet: the hosts.
        work: the folder for fleets, playbooks and inventories.
        venv: the environment of pyinfra.
        value: that of the argument which the last run has set.
    """

    fleet: LabFleet
    work: Path
    venv: Path
    value: int = _FIRST_VALUE
    samples: dict[tuple[str, str, int], list[measure.Sample]] = field(default_factory=dict)

    def deploy(self, count: int) -> None:
        """Brings the first hosts to the value with this project, without the clock."""
        with Heartbeat(f"bench: setting up {count} hosts (ansible-playbook site.yml)"):
            self._run(contenders.SITE, self._site(count), self._seconds(count))

    def prepare_gateway(self, count: int) -> None:
        """Has the gateway know that many hosts, without the clock: no peer has one."""
        with Heartbeat(f"bench: setting up the gateway of {count} hosts"):
            self._run(contenders.SITE, [*self._site(count), "--limit", GATEWAY], self._seconds(count))

    def change(self, name: str, count: int) -> None:
        """Measures a contender that changes one file of each host, and checks every host afterwards."""
        self.value += 1
        self._forget_starts(count)
        if name == contenders.SITE:
            command = self._site(count)
        else:
            self._write_copies(count)
            command = self._peer(name, change_report.CHANGE, count)
        self._keep(change_report.CHANGE, name, count, command)

    def set_up(self, name: str, count: int) -> None:
        """Measures a contender that sets up new hosts, and checks every one afterwards."""
        command = self._site(count) if name == contenders.SITE else self._peer(name, change_report.NEW, count)
        self._keep(change_report.NEW, name, count, command)

    def _keep(self, work: str, name: str, count: int, command: Sequence[str]) -> None:
        began = time.time_ns()
        sample = self._run(name, command, self._seconds(count))
        if fault := self._fault(names(count), began):
            raise FleetError(f"{work}: {name} on {count} hosts does not count: {fault}", code=ErrorCode.WORK_FAILED)
        self.samples.setdefault((work, name, count), []).append(sample)
        print(
            f"bench: {work}, {count} hosts, {name}: {sample.wall:.1f} s, controller {sample.controller:.1f} s of CPU",
            file=sys.stderr,
        )

    def _fault(self, serving: Sequence[str], since: int) -> str | None:
        for name in serving:
            if fault := host_fault(self.fleet.root(name), self.value, since):
                return f"{name} {fault}"
            self.fleet.run(name, "systemctl", "is-active", "--quiet", lab_fleet.UNIT)
        return None

    def _run(self, name: str, command: Sequence[str], timeout_seconds: float) -> measure.Sample:
        log = self.work / "log"
        environment = {
            **contenders.common_environment(self.work / "home"),
            # The start caches of stand-ins are none for a real engine.
            "VLLM_FLEET_CACHE": str(self.work / "cache"),
            **(contenders.site_environment() if name == contenders.SITE else self._peer_environment(name)),
        }
        code, sample = measure.run(command, environment, paths.root(), log, timeout_seconds, self.fleet.cpu_stats())
        if code != 0:
            output = log.read_text(encoding="utf-8", errors="replace")
            print("\n".join(output.splitlines()[-25:]), file=sys.stderr)
            raise FleetError(f"{name} ended with {code}", "its output is above", code=ErrorCode.WORK_FAILED)
        return sample

    def _peer_environment(self, name: str) -> Mapping[str, str]:
        if name == contenders.PYINFRA:
            return {}
        return {"ANSIBLE_CONFIG": str(self.work / ("tuned.cfg" if name == contenders.TUNED else "default.cfg"))}

    def _site(self, count: int) -> list[str]:
        folder = self.work / "fleets" / fleet_name(count)
        file = lab_fleet.write_fleet(folder, names(count), self.fleet.access, self.value)
        return [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(file), "site.yml"]

    def _peer(self, name: str, work: str, count: int) -> list[str]:
        addresses = {each: lab_fleet.address(each) for each in names(count)}
        known_hosts = self.work / f"known_hosts-{count}"
        known_hosts.write_text(lab_fleet.known_hosts_text(names(count), self.fleet.access), encoding="utf-8")
        if name == contenders.PYINFRA:
            file = self.work / f"hosts_{count}.py"
            text = peers.pyinfra_inventory_text(addresses, self.fleet.access.private_key, known_hosts)
            file.write_text(text, encoding="utf-8")
            return [str(self.venv / "bin/pyinfra"), "-y", str(file), str(self.work / f"{work}.py")]
        file = self.work / f"hosts-{count}.yml"
        text = peers.ansible_inventory_text(addresses, self.fleet.access.private_key, known_hosts)
        file.write_text(text, encoding="utf-8")
        program = str(Path(sys.executable).parent / "ansible-playbook")
        return [program, "-i", str(file), str(self.work / f"{work}.yml")]

    def write_peers(self, count: int) -> int:
        """Writes playbooks and deploys, and the files of the first hosts as they are now.

        Returns:
            The number of operations for a new host.
        """
        hosts = [
            each for each in inventory.load(self.work / "fleets" / fleet_name(count)).hosts if each.plan.deployment
        ]
        copies: dict[str, Path] = {}
        for each in hosts:
            items = change_peers.items_of_new_host(each.manifest.items)
            folder = self.work / "copies" / each.plan.name
            folder.parent.mkdir(exist_ok=True)
            own = peers.copy_files(items, self.fleet.root(each.plan.name), folder)
            copies |= {
                _common(path): Path(str(file).replace(each.plan.name, change_peers.HOST)) for path, file in own.items()
            }
        checks = change_peers.new_host(
            [_of_any_host(item) for item in change_peers.items_of_new_host(hosts[0].manifest.items)], copies
        )
        texts = {
            "tuned.cfg": peers.TUNED_CFG,
            "default.cfg": "",
            f"{change_report.NEW}.yml": change_peers.playbook_text(checks),
            f"{change_report.NEW}.py": change_peers.pyinfra_text(checks),
            f"{change_report.CHANGE}.yml": change_peers.change_playbook_text(self._copy(change_peers.HOST)),
            f"{change_report.CHANGE}.py": change_peers.change_pyinfra_text(self._copy(change_peers.HOST)),
        }
        for name, text in texts.items():
            (self.work / name).write_text(text, encoding="utf-8")
        return len(checks)

    def _copy(self, host: str) -> Path:
        return self.work / "changed" / f"{host}.yaml"

    def _write_copies(self, count: int) -> None:
        """The config of each host with the next value, rendered before the clock starts."""
        for name in names(count):
            text = read_config(self.fleet.root(name))
            self._copy(name).parent.mkdir(exist_ok=True)
            self._copy(name).write_text(with_value(text, self.value), encoding="utf-8")

    def _forget_starts(self, count: int) -> None:
        """Resets systemd's limit of starts, which no fleet reaches that is changed now and then."""
        for name in names(count):
            self.fleet.run(name, "systemctl", "reset-failed", lab_fleet.UNIT)

    @staticmethod
    def _seconds(count: int) -> float:
        return _START_SECONDS + _SECONDS_PER_HOST * count


def fleet_name(count: int) -> str:
    """The name of the fleet with that many hosts that serve."""
    return f"bench-change-{count}"


def read_config(root: Path) -> str:
    """The config that the next start of a host's instance reads.

    Args:
        root: the host's root folder.
    """
    return (root / lab_fleet.CONFIG.lstrip("/")).read_text(encoding="utf-8")


def with_value(text: str, value: int) -> str:
    """A config with another value of the argument."""
    return re.sub(rf"(?m)^{lab_fleet.ARGUMENT}: .*$", f"{lab_fleet.ARGUMENT}: {value}", text)


def host_fault(root: Path, value: int, since: int) -> str | None:
    """Why a host does not count: its file must have the value, and its instance must have answered with it.

    Args:
        root: the host's root folder.
        value: the value.
        since: when the run began, in nanoseconds since the epoch.
    """
    try:
        text = read_config(root)
        loaded = (root / "run/vllm-0/loaded").read_text(encoding="utf-8")
        answered = (root / "run/vllm-0/started").stat().st_mtime_ns
    except OSError as fault:
        return f"has no {fault.filename}"
    if f"\n{lab_fleet.ARGUMENT}: {value}\n" not in text:
        return f"does not have the value {value}"
    if loaded.split()[:1] != [hashlib.sha256(text.encode()).hexdigest()]:
        return "runs with another file than it has"
    return None if answered > since else "was not restarted"


def _common(path: str) -> str:
    """A path of a release, without the digest that each host has of its own."""
    return re.sub(r"^/opt/vllm/releases/[0-9a-f]{16}", "/opt/vllm/releases/first", path)


def _of_any_host(item: Item) -> Item:
    own = dict(item)
    for key in ("path", "target"):
        if key in own:
            own[key] = re.sub(r"releases/[0-9a-f]{16}", "releases/first", str(own[key]))
    return own  # type: ignore[return-value]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit code is 0, or that of the error."""
    parser = argparse.ArgumentParser(prog="python -m bench.change", description=__doc__)
    parser.add_argument("--hosts", type=_numbers, default=list(_HOSTS), metavar="N,N", help="default: 100,300")
    parser.add_argument("--runs", type=int, default=_RUNS, help=f"of each fast contender (default: {_RUNS})")
    parser.add_argument("--without-tasks", action="store_true", help="leave out Ansible's tasks, which take minutes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    parser.add_argument("--no-write", action="store_true", help="leave docs/performance.md as it is")
    chosen = parser.parse_args(arguments)
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        report = _bench(chosen.hosts, chosen.runs, tasks=not chosen.without_tasks)
    except FleetError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    except KeyboardInterrupt as fault:
        print(f"bench: ended by {fault or 'an interrupt'}; the hosts are removed", file=sys.stderr)
        return 130
    file = paths.root() / "docs" / "performance.md"
    if not chosen.no_write:
        document = file.read_text(encoding="utf-8")
        write_atomically(file, replace_section(document, change_report.section(report)))
    print(json.dumps(report.record(), indent=2) if chosen.json else "\n".join(change_report.text(report)))
    return 0


def _interrupt(number: int, _frame: object) -> None:
    """Ends the benchmark; later signals do not interrupt the clean-up."""
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


def _numbers(text: str) -> list[int]:
    return sorted({int(word) for word in text.split(",")})


def _bench(wanted: Sequence[int], runs: int, *, tasks: bool) -> change_report.Report:
    measure.adopt_orphans()
    room = lab_fleet.largest_fleet(Path("/proc/meminfo").read_text(encoding="ascii"))
    sizes = fitting_sizes(wanted, room)
    with state.locked("bench"), contenders.work_folder() as work:
        venv = uv.group_environment("bench", "pyinfra")
        with lab_fleet.running(work, sizes[-1] + 1) as fleet:
            bench = _Bench(fleet, work, venv)
            try:
                operations = _measure(bench, sizes, runs, tasks=tasks)
            finally:
                for count in sizes:
                    shutil.rmtree(paths.run_dir(fleet_name(count)), ignore_errors=True)
    rows = {
        work_name: tuple(
            results.Row(name, count, tuple(samples))
            for (of, name, count), samples in bench.samples.items()
            if of == work_name
        )
        for work_name in (change_report.CHANGE, change_report.NEW)
    }
    return change_report.Report(rows, operations, room, tuple(count for count in wanted if count not in sizes))


def fitting_sizes(wanted: Sequence[int], room: int) -> list[int]:
    """The numbers of hosts to measure: those that fit, and the largest that fits in place of the others.

    Args:
        wanted: numbers of hosts.
        room: how many fit into this machine.

    Raises:
        FleetError: not one host fits.
    """
    if room < 1:
        raise FleetError("this machine has too little memory for one host", "free some memory", code=ErrorCode.REFUSED)
    return sorted({min(count, room) for count in wanted})


def slow_turns(work: str, few: int) -> list[tuple[int, str]]:
    """Numbers of hosts for Ansible's tasks, and for pyinfra beside them, so that they have a ratio too.

    Args:
        work: what they do.
        few: the smallest number of hosts of the others, on which pyinfra runs anyway.
    """
    counts = sorted({min(count, few) for count in _TASK_HOSTS[work]})
    peers_of_all = (contenders.TUNED, contenders.STOCK)
    return [
        (count, name)
        for count in counts
        for name in (peers_of_all if count == few else (contenders.PYINFRA, *peers_of_all))
    ]


def _measure(bench: _Bench, sizes: Sequence[int], runs: int, *, tasks: bool) -> int:
    """Measures everything in the order that needs the fewest boots; a new fleet has the smallest number of hosts.

    Returns:
        How many operations a peer has for a new host.
    """
    few, most = sizes[0], sizes[-1]
    bench.fleet.boot([GATEWAY, *names(few)])
    bench.prepare_gateway(few)
    bench.set_up(contenders.SITE, few)
    operations = bench.write_peers(few)
    if most > few:
        bench.fleet.boot(names(most)[few:])
        bench.prepare_gateway(most)
        bench.deploy(most)
    for count in sizes:
        bench.prepare_gateway(count)
        for _ in range(runs):
            for name in (contenders.SITE, contenders.PYINFRA):
                bench.change(name, count)
    for count, name in slow_turns(change_report.CHANGE, few) if tasks else ():
        bench.change(name, count)
    bench.value = _FIRST_VALUE
    bench.fleet.boot(names(few))
    bench.set_up(contenders.PYINFRA, few)
    for count, name in slow_turns(change_report.NEW, few) if tasks else ():
        bench.fleet.boot(names(count))
        bench.set_up(name, count)
    return operations


if __name__ == "__main__":
    sys.exit(main())
