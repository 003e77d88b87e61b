"""The benchmark of Pulumi programs: that it measures the whole fleet, and its section of the document."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import scale, scale_report
from bench.markdown import replace_section


def row(name: str, seconds: float, peak: float) -> scale.Row:
    return scale.Row(name, 1000, (scale.Sample(seconds, seconds / 2, 1.0, peak, 3000),))


ROWS = [row("plain", 8.0, 300.0), row("fast", 8.0, 390.0), row("slow", 12.0, 390.0), row("large", 8.0, 410.0)]


def test_each_program_of_the_project_is_held_against_the_goal() -> None:
    told = scale_report.goals(ROWS)
    assert [("reached" in line, "**missed**" in line) for line in told] == [(True, False), (False, True), (False, True)]


def test_the_goal_is_a_ratio_to_the_peer_of_the_same_run() -> None:
    slower = [row(each.name, each.seconds * 2, each.peak_mib) for each in ROWS]
    assert scale_report.goals(slower) == scale_report.goals(ROWS)


@pytest.mark.parametrize(("load", "text"), [(0.01, "Nothing else ran"), (None, "was not measured")])
def test_the_section_says_what_else_ran(load: float | None, text: str) -> None:
    rows = [scale.Row(row.name, row.hosts, tuple(replace(each, load=load) for each in row.samples)) for row in ROWS]
    assert text in " ".join(" ".join(block) for block in scale_report.section(rows))


@pytest.mark.parametrize(
    "document",
    ["# T\n\ntext\n\n## The machine\n\nm\n", f"# T\n\ntext\n\n{scale_report.TITLE}\n\nold\n\n## The machine\n\nm\n"],
    ids=["added", "replaced"],
)
def test_the_section_takes_its_place_in_the_document(document: str) -> None:
    found = replace_section(document, scale_report.section(ROWS))
    assert found.startswith("# T\n\ntext\n\n" + scale_report.TITLE)
    assert found.endswith("\n\n## The machine\n\nm\n")
    assert "old" not in found
    assert replace_section(found, scale_report.section(ROWS)) == found


@pytest.mark.slow
@pytest.mark.parametrize("what", scale.WHATS)
def test_a_program_asks_for_every_host(what: str) -> None:
    found = scale._sample(what, 5)
    assert found.resources >= 5 if what == "plain" else found.resources > 5 * 3
    assert found.peak_mib > 10
