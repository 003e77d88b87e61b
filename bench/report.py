"""The results as ``docs/performance.md`` and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import contenders, load, scale, scale_report
from bench.markdown import markdown, paragraph
from bench.results import Growth, Row, differences, growths

GOAL_HOSTS = 100
#: This project's share of what pyinfra needs in the same run. Seconds depend on the machine: the same commit took 6.3 s
#: on one and 8.0 s on another of the same kind, and pyinfra 36.4 s and 43.6 s.
GOAL_WALL = 0.2
GOAL_CONTROLLER = 0.16


@dataclass(frozen=True)
class Report:
    """The results of one benchmark.

    Attributes:
        sizes: the numbers of hosts that the report compares.
        rows: contenders by number of hosts.
        parts: the steps of one probe, each with the one before it, on one number of hosts.
        machine: part of the machine -> its description.
        checks: number of checks on each host.
        scale: Pulumi programs of many hosts; empty where they were not run.
    """

    sizes: Sequence[int]
    rows: Sequence[Row]
    parts: Sequence[Row]
    machine: Mapping[str, str]
    checks: int
    scale: Sequence[scale.Row] = ()


def goals(rows: Sequence[Row]) -> list[str]:
    """The goals and the results, one sentence each, as far as they were measured."""
    by_name = {row.name: row for row in rows if row.hosts == GOAL_HOSTS}
    own, peer = by_name.get(contenders.SITE), by_name.get(contenders.PYINFRA)
    if own is None or peer is None:
        return []
    what = f"{GOAL_HOSTS} unchanged hosts in"
    return [
        _verdict(f"{what} {GOAL_WALL:g} x the time of pyinfra in the same run", own.wall / peer.wall, GOAL_WALL),
        _verdict(f"{what} {GOAL_CONTROLLER:g} x its controller CPU", own.controller / peer.controller, GOAL_CONTROLLER),
    ]


def _verdict(goal: str, value: float, limit: float) -> str:
    if value <= limit:
        return f"{goal}: reached, {value:.2f} x"
    return f"{goal}: **missed by {value - limit:.2f}**, {value:.2f} x"


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as a table in Markdown; the ratios to pyinfra on as many hosts come first."""
    peers = {row.hosts: row for row in rows if row.name == contenders.PYINFRA}
    lines = [
        (
            "hosts",
            "",
            "of pyinfra's time",
            "of its controller CPU",
            "wall (min-max) [s]",
            "controller CPU [ms/host]",
            "target CPU [ms/host]",
        ),
    ]
    for row in sorted(rows, key=lambda row: row.hosts):
        peer = peers.get(row.hosts)
        low, high = row.wall_range
        spread = f" ({low:.1f}-{high:.1f})" if len(row.samples) > 1 else ""
        lines.append(
            (
                str(row.hosts),
                row.name,
                f"{row.wall / peer.wall:.2f} x" if peer else "-",
                f"{row.controller / peer.controller:.2f} x" if peer else "-",
                f"{row.wall:.1f}{spread}",
                f"{row.controller_per_host:.1f}",
                "-" if row.target_per_host is None else f"{row.target_per_host:.0f}",
            )
        )
    return markdown(lines, right={0, 2, 3, 4, 5, 6})


def growth_table(growths: Sequence[Growth]) -> list[str]:
    """The growth as a table in Markdown."""
    lines = [("", "hosts", "wall grows by", "controller CPU, fixed [s]", "and for each host [ms]")]
    for growth in growths:
        lines.append(
            (
                growth.name,
                f"{growth.few.hosts} to {growth.many.hosts}",
                f"{growth.wall_factor:.2f} x",
                # Below zero where the cost for each host grows with their number.
                f"{growth.controller_fixed:.2f}" if growth.controller_fixed > 0 else "-",
                f"{growth.controller_ms_per_added_host:.1f}",
            )
        )
    return markdown(lines, right={1, 2, 3, 4})


def extrapolations(growths: Sequence[Growth]) -> list[str]:
    """The estimated time of the slow peers for the number of hosts of the goal, one line each."""
    return [
        f"{growth.name}: about {growth.wall_at(GOAL_HOSTS):.0f} s for {GOAL_HOSTS} hosts "
        f"(the straight line through {growth.few.hosts} and {growth.many.hosts} hosts, not measured)"
        for growth in growths
        if growth.many.hosts < GOAL_HOSTS
    ]


def parts_table(parts: Sequence[Row]) -> list[str]:
    """The steps of a probe as a table in Markdown."""
    lines = [("step", "target CPU [ms/host]")]
    lines += [(name, "-" if own is None else f"{own:.0f}") for name, own in differences(parts)]
    return markdown(lines, right={1})


def text(report: Report) -> str:
    """Table, goals, growth and extrapolation for the terminal."""
    grown = growths(report.rows, report.sizes)
    blocks = [table(report.rows), goals(report.rows), extrapolations(grown)]
    if grown:
        blocks.append(growth_table(grown))
    if report.parts:
        blocks.append(parts_table(report.parts))
    blocks.append([_runs(report), _noise(report)])
    if report.scale:
        blocks.append(scale_report.text(report.scale))
    return "\n\n".join("\n".join(block).replace("**", "") for block in blocks if block) + "\n"


def document(report: Report) -> str:
    """``docs/performance.md``."""
    grown = growths(report.rows, report.sizes)
    blocks = [
        ["# Speed of the unchanged fleet"],
        ["Written by `make bench`; run it again instead of editing this file."],
        paragraph(
            "Read the ratios: each is to a peer that did the same work in the same run. Seconds and milliseconds are "
            "those of one machine, and another one of the same kind may need a third more, as its peers do."
        ),
        paragraph(
            f"Every host matches its plan, and every contender checks that with the same {report.checks} checks "
            "(packages, account, directories, files with content, mode and owner, units). The hosts are loopback "
            "addresses (127.0.1.x, 127.0.2.x) of one real Debian host with a real OpenSSH server; logins are by key "
            "as a user with `/bin/sh` and sudo, host keys are checked strictly, and each run opens new connections. "
            "A run counts only if the contender reports that it reached every host and found nothing to change."
        ),
        table(report.rows),
        paragraph(
            f"{_runs(report)} {_noise(report)} The controller CPU is that of its whole process tree, with the "
            "processes that it leaves running. The targets share the processors with the controller: in a real fleet "
            "each host has its own processors, and the controller is the limit."
        ),
    ]
    if guesses := extrapolations(grown):
        introduction = "Ansible's tasks are too slow to run on that many hosts each time (`BENCH_FULL=1` does it):"
        blocks += [[introduction], [f"- {line}" for line in guesses]]
    if reached := goals(report.rows):
        blocks += [["## Goals"], [f"- {line}" for line in reached]]
    if grown:
        blocks += [["## Growth"], growth_table(grown)]
    blocks += [["## Where the time goes"], *_costs(report, grown)]
    if report.scale:
        blocks += scale_report.section(report.scale)
    blocks += [["## The machine of the other tables"], markdown([("", ""), *report.machine.items()], right=set())]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _costs(report: Report, grown: Sequence[Growth]) -> list[list[str]]:
    by_name = {growth.name: growth for growth in grown}
    own, drift = by_name.get(contenders.SITE), by_name.get(contenders.DRIFT)
    blocks = []
    if own and drift:
        blocks.append(
            paragraph(
                f"On the controller, `site.yml` pays {own.controller_fixed:.1f} s of CPU before the first host and "
                f"{own.controller_ms_per_added_host:.1f} ms for each; `vllm-fleet drift`, which is the probe without "
                f"Ansible, {drift.controller_fixed:.1f} s and {drift.controller_ms_per_added_host:.1f} ms. The fixed "
                "part is the start of Python and Ansible and the reading of playbooks and recipes. Most of the "
                "cost of a host is SSH; the difference between the two is Ansible's inventory, which is made twice, "
                "its variables, and the wait for the probe."
            )
        )
    if report.parts:
        hosts = report.parts[0].hosts
        blocks.append([f"On the host, one probe is (measured step by step on {hosts} hosts):"])
        blocks.append(parts_table(report.parts))
    return blocks


def _runs(report: Report) -> str:
    """The number of runs."""
    counts = {len(row.samples) for row in report.rows if row.hosts in report.sizes}
    most = max(counts, default=1)
    if most == 1:
        return "One run each, after a warm-up."
    return f"Median of {most} runs, in turns, after a warm-up (rows without a range: one run)."


def _noise(report: Report) -> str:
    """The load of other programs."""
    return load.describe_load(load.worst(row.load for row in report.rows if row.hosts in report.sizes))
