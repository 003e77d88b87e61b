"""A changed file with a restart, and a new fleet, as a section of ``docs/performance.md``: ratios to the peer first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import contenders, lab_fleet, load, machine
from bench.markdown import markdown, paragraph
from bench.results import Growth, Row, growths

TITLE = "## Speed of change"
CHANGE, NEW = "change", "new"
_TITLES = {
    CHANGE: "### One file changes on every host, with a restart",
    NEW: "### A new fleet, from nothing to ready",
}
#: Work -> this project's share of pyinfra's time in the same run.
GOALS = {CHANGE: 0.5, NEW: 1.0}
#: Seconds of the controller's time for each host of a rollout.
GOAL_SECONDS_PER_HOST = 0.5
GOAL_HOSTS = 100


@dataclass(frozen=True)
class Report:
    """The results of one benchmark.

    Attributes:
        rows: work -> contenders by number of hosts.
        operations: how many operations a peer has for a new host.
        room: how many hosts fit into the memory of the machine.
        too_large: the numbers of hosts that were asked for and do not fit.
    """

    rows: Mapping[str, Sequence[Row]]
    operations: int
    room: int
    too_large: Sequence[int] = ()

    def record(self) -> dict[str, Any]:
        """The results as plain data."""
        return {
            **{work: [row.record() for row in rows] for work, rows in self.rows.items()},
            "goals": [text.replace("**", "") for work in self.rows for text in goals(work, self.rows[work])],
            "room": self.room,
        }


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as a table; the ratio to pyinfra of the same run comes first."""
    peers = {row.hosts: row.wall for row in rows if row.name == contenders.PYINFRA}
    lines = [("hosts", "", "of pyinfra's time", "wall (min-max) [s]", "controller CPU [ms/host]", "host CPU [ms/host]")]
    for row in sorted(rows, key=lambda row: row.hosts):
        low, high = row.wall_range
        spread = f" ({low:.1f}-{high:.1f})" if len(row.samples) > 1 else ""
        lines.append(
            (
                str(row.hosts),
                row.name,
                f"{row.wall / peers[row.hosts]:.2f} x" if row.hosts in peers else "-",
                f"{row.wall:.1f}{spread}",
                f"{row.controller_per_host:.0f}",
                "-" if row.target_per_host is None else f"{row.target_per_host:.0f}",
            )
        )
    return markdown(lines, right={0, 2, 3, 4, 5})


def goals(work: str, rows: Sequence[Row]) -> list[str]:
    """The goals of a work and the results, one sentence each, as far as they were measured.

    Args:
        work: :data:`CHANGE` or :data:`NEW`.
        rows: its rows.
    """
    by_name = {(row.name, row.hosts): row for row in rows}
    verdicts = []
    for (name, hosts), own in by_name.items():
        if name != contenders.SITE:
            continue
        if peer := by_name.get((contenders.PYINFRA, hosts)):
            goal = f"{hosts} hosts in {GOALS[work]:g} x the time of pyinfra in the same run"
            verdicts.append(_verdict(goal, own.wall / peer.wall, GOALS[work], "x"))
        if work == CHANGE and hosts == GOAL_HOSTS:
            goal = f"rolling {hosts} hosts with {GOAL_SECONDS_PER_HOST:g} s of controller CPU for each"
            verdicts.append(_verdict(goal, own.controller / hosts, GOAL_SECONDS_PER_HOST, "s"))
    return verdicts


def _verdict(goal: str, value: float, limit: float, unit: str) -> str:
    if value <= limit:
        return f"{goal}: reached, {value:.2f} {unit}"
    return f"{goal}: **missed**, {value:.2f} {unit}"


def extrapolations(grown: Sequence[Growth]) -> list[str]:
    """The estimated time of Ansible's tasks for the number of hosts of the goal, one line each."""
    return [
        f"{growth.name}: about {growth.wall_at(GOAL_HOSTS):.0f} s for {GOAL_HOSTS} hosts "
        f"(the straight line through {growth.few.hosts} and {growth.many.hosts} hosts, not measured)"
        for growth in grown
        if growth.many.hosts < GOAL_HOSTS
    ]


def section(report: Report) -> list[list[str]]:
    """The section as blocks of lines."""
    waived = "; ".join(f"{gate} ({why})" for gate, why in lab_fleet.WAIVED.items())
    blocks = [
        [TITLE],
        paragraph(
            "Each host is a systemd host of its own on one machine: its own files, its own sshd with strict host keys, "
            "the units of the roles, and a small program in place of vLLM that drains as vLLM does. They share the "
            "processors with the controller, so what a contender makes the hosts do counts as much as what it does "
            "itself. What is large is on the hosts before: the packages of the base system, the engine, the model and "
            "the vocabularies, for all contenders alike. A run counts only if every host has the new file, and its "
            f"instance has answered a completion with it afterwards. {_noise(report)}"
        ),
        paragraph(
            "`site.yml` does more than its peers: it probes, takes each host out of the traffic of a real HAProxy, "
            "starts with a canary, follows in batches, proves each start, can go back, and probes again. These gates "
            f"are waived, and the others run: {waived}. A peer writes the file and restarts the instance on all hosts "
            "at once."
        ),
        *_size(report),
    ]
    for work, title in _TITLES.items():
        rows = report.rows.get(work, ())
        if not rows:
            continue
        blocks += [[title], _introduction(work, report), table(rows)]
        blocks.append([f"- {line}" for line in (*goals(work, rows), *extrapolations(_grown(rows)))])
    return [*blocks, paragraph(f"Printed by `python -m bench.change`, processors: {machine.processors()}.")]


def text(report: Report) -> list[str]:
    """The section for the terminal."""
    lines: list[str] = []
    for work, title in _TITLES.items():
        rows = report.rows.get(work, ())
        if rows:
            lines += [title.strip("# "), "", *table(rows), "", *goals(work, rows), *extrapolations(_grown(rows)), ""]
    return [*(line.replace("**", "") for line in lines), _noise(report)]


def _introduction(work: str, report: Report) -> list[str]:
    runs = max((len(row.samples) for row in report.rows[work]), default=1)
    how = "One run each." if runs == 1 else f"Median of {runs} runs, in turns (rows without a range: one run)."
    if work == CHANGE:
        return paragraph(
            f"Another value of `{lab_fleet.ARGUMENT}`, an argument of vLLM: one file for a peer. For `site.yml` it is "
            "two, since the start cache is another one for other arguments: the first host leaves one, and the others "
            f"get a copy. {how}"
        )
    return paragraph(f"Peers have {report.operations} operations for each host, in the order of the manifest. {how}")


def _size(report: Report) -> list[list[str]]:
    if not report.too_large:
        return []
    asked = ", ".join(map(str, report.too_large))
    each = f"{lab_fleet.HOST_MIB} MiB each"
    return [paragraph(f"{asked} hosts do not fit into the memory of this machine: {report.room} do, at {each}.")]


def _grown(rows: Sequence[Row]) -> list[Growth]:
    return [growth for growth in growths(rows, ()) if growth.name in (contenders.TUNED, contenders.STOCK)]


def _noise(report: Report) -> str:
    return load.describe_load(load.worst(row.load for rows in report.rows.values() for row in rows))
