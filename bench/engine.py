"""``python -m bench.engine``: fleets through the real Pulumi engine, in a cloud that is rehearsed.

Prints a table and replaces its section of ``docs/performance.md``. Needs no root.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from bench import engine_report, engine_steps
from bench.markdown import replace_section
from lab import state
from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import FleetError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit code is 0, or that of the error."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("--hosts", type=_numbers, default=[200], metavar="N,N", help="default: 200")
    parser.add_argument(
        "--saved-at-end",
        type=_numbers,
        default=[1000],
        metavar="N,N",
        help="numbers of hosts with the state saved once, at the end (default: 1000; 0: none)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--no-write", action="store_true", help="leave docs/performance.md as it is")
    chosen = parser.parse_args(arguments)
    each = [*chosen.hosts, *(chosen.saved_at_end if os.environ.get("BENCH_FULL") == "1" else [])]
    cases = [(hosts, engine_steps.EACH_STEP) for hosts in each] + [
        (hosts, engine_steps.AT_END) for hosts in chosen.saved_at_end
    ]
    try:
        with state.locked("bench-engine"):
            project = paths.cache_dir() / "bench" / "engine"
            rows = [row for hosts, saved in cases if hosts for row in engine_steps.measure(hosts, saved, project)]
    except FleetError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    file = paths.root() / "docs" / "performance.md"
    if not chosen.no_write:
        write_atomically(file, replace_section(file.read_text(encoding="utf-8"), engine_report.section(rows)))
    print(json.dumps([asdict(row) for row in rows], indent=2) if chosen.json else "\n".join(engine_report.table(rows)))
    return 0


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
