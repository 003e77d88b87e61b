"""Pulumi programs of many hosts as a section of ``docs/performance.md`` and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from bench import load, scale
from bench.markdown import markdown, paragraph

TITLE = "## Pulumi at scale: the program only"


def table(rows: Sequence[scale.Row]) -> list[str]:
    """The rows as a table; the first is the peer, the SDK alone."""
    lines = [
        (
            "program",
            "of the peer's time",
            "resources",
            "seconds",
            "CPU [s]",
            "CPU [ms/resource]",
            "imports [s]",
            "peak [MiB]",
        )
    ]
    for row in rows:
        milliseconds = row.cpu_seconds / row.resources * 1000
        lines.append(
            (
                row.name,
                f"{row.seconds / rows[0].seconds:.2f} x",
                str(row.resources),
                f"{row.seconds:.1f}",
                f"{row.cpu_seconds:.1f}",
                f"{milliseconds:.1f}",
                f"{row.import_seconds:.1f}",
                f"{row.peak_mib:.0f}",
            )
        )
    return markdown(lines, right={1, 2, 3, 4, 5, 6, 7})


def goals(rows: Sequence[scale.Row]) -> list[str]:
    """The goals and the results, for each program of this project."""
    return [_verdict(row, rows[0]) for row in rows[1:]]


def _verdict(row: scale.Row, peer: scale.Row) -> str:
    goal = f"{row.name} in {scale.GOAL_RATIO:g} x the time of the peer in the same run, and {scale.GOAL_MIB:g} MiB"
    figures = f"{row.seconds / peer.seconds:.2f} x, {row.peak_mib:.0f} MiB"
    return f"{goal}: {'reached' if row.reaches_goal(peer) else '**missed**'}, {figures}"


def section(rows: Sequence[scale.Row]) -> list[list[str]]:
    """The section as blocks of lines."""
    runs = len(rows[0].samples)
    return [
        [TITLE],
        paragraph(
            "The whole program of a fleet under recording mocks, which answer at once, without the engine and without "
            f"a cloud; each in a process of its own, {'one run' if runs == 1 else f'median of {runs} runs, in turns'}. "
            "The first row is the peer: that many instances of the SDK, with the inputs of one host and nothing else. "
            "A host of a fleet is three resources: its component, its SSH host key, its instance. "
            f"{load.describe_load(load.worst(row.load for row in rows))}"
        ),
        table(rows),
        [f"- {line}" for line in goals(rows)],
    ]


def text(rows: Sequence[scale.Row]) -> list[str]:
    """The section for the terminal."""
    return [*table(rows), "", *goals(rows)]
