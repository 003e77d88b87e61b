"""The benchmark of artifacts: what its origin counts, and what its table says."""

from __future__ import annotations

import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from bench import artifacts, origin
from bench.artifacts import DIRECT, MIRRORED, Row, Sample

MIB = 1 << 20
ROWS = [
    Row(DIRECT, 1, (Sample(96 * MIB, 0.0, 9.0),)),
    Row(MIRRORED, 1, (Sample(96 * MIB, 6.0, 12.0),)),
    Row(DIRECT, 4, (Sample(384 * MIB, 0.0, 30.0), Sample(384 * MIB, 0.0, 32.0))),
    Row(MIRRORED, 4, (Sample(96 * MIB, 6.0, 14.0), Sample(96 * MIB, 6.5, 15.0))),
]


def test_the_origin_counts_what_it_sends_and_is_no_faster_than_its_uplink() -> None:
    source = origin.Origin({"/a": b"x" * MIB}, 4 * MIB)
    with origin.serving(source, "127.0.0.1") as found, ThreadPoolExecutor(4) as pool:
        began = time.monotonic()
        bodies = list(pool.map(lambda _: urllib.request.urlopen(f"{found.url}/a").read(), range(4)))
        seconds = time.monotonic() - began
    assert {len(body) for body in bodies} == {MIB}
    assert source.sent == 4 * MIB
    assert seconds >= 0.9, "four connections share the uplink"


def test_what_is_not_there_is_no_file_of_the_origin() -> None:
    with (
        origin.serving(origin.Origin({}, MIB), "127.0.0.1") as found,
        pytest.raises(urllib.request.HTTPError, match="404"),
    ):
        urllib.request.urlopen(f"{found.url}/a")


def test_the_table_has_both_ways_side_by_side() -> None:
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in artifacts.table(ROWS)]
    assert cells[2:] == [["1", "96.0", "96.0", "9.0", "12.0", "6.0"], ["4", "384.0", "96.0", "31.0", "14.5", "6.2"]]


def test_a_row_as_data_says_what_was_counted() -> None:
    assert ROWS[3].record() == {
        "name": MIRRORED,
        "hosts": 4,
        "runs": 2,
        "origin_mib": 96.0,
        "seconds": 14.5,
        "mirror_seconds": 6.2,
    }


def test_the_document_says_how_the_figures_came_about() -> None:
    text = artifacts.document(ROWS)
    assert "an uplink of 16 MiB/s" in text
    assert "The origin counts the bytes" in " ".join(text.split())
    assert "The load of other programs was not measured" in " ".join(text.split())
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))


def test_the_document_says_that_nothing_else_ran_where_that_was_measured() -> None:
    quiet = [Row(row.name, row.hosts, tuple(replace(sample, load=0.02) for sample in row.samples)) for row in ROWS]
    assert "at most 0.02 processors before each run" in " ".join(artifacts.document(quiet).split())
