"""``python -m bench.affinity``: do the turns of a conversation return to the server that has their beginning?

Sessions of several turns go through each router, with one gateway and with two that take the turns in alternation, to
stand-ins of vLLM on this machine. Prints a table and replaces its section of ``docs/performance.md``. Needs no root.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from bench import affinity_client, affinity_report, affinity_routers
from bench.affinity_client import Conversation
from bench.affinity_report import DIRECT, Row, Sample
from bench.affinity_routers import MODEL, Router, Start
from bench.markdown import replace_section
from bench.measure import busy_processors
from lab import state
from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.heartbeat import Heartbeat
from vllm_fleet.edge import keys, uv

_RUNS = 3
_SERVERS = 3
#: How long the machine is looked at before a router starts, and the router before its first request.
_LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class Contender:
    """One router, as clients meet it.

    Attributes:
        name: its name in the table.
        start: starts it.
        named: whether the clients name their session.
    """

    name: str
    start: Start
    named: bool


@dataclass(frozen=True)
class Load:
    """What the clients do.

    Attributes:
        sessions: how many talk side by side.
        turns: how many questions each asks.
        pause_seconds: between two turns of a session, on average.
        token_seconds: what a server takes for a token.
        looks: whether the load of other programs and the idle router are measured.
    """

    sessions: int = 60
    turns: int = 5
    pause_seconds: float = 2.0
    token_seconds: float = 0.01
    looks: bool = True


def contenders(smg: Path | None) -> list[Contender]:
    """The routers, in the order of the table.

    Args:
        smg: the path of ``smg``; None leaves it out.
    """
    own = [
        Contender("HAProxy, affinity none", affinity_routers.haproxy("none"), named=True),
        Contender("HAProxy, affinity session, key named", affinity_routers.haproxy("session"), named=True),
        Contender("HAProxy, affinity conversation, no key", affinity_routers.haproxy("conversation"), named=False),
    ]
    return [*own, *([Contender("smg cache_aware, no key", affinity_routers.smg(smg), named=False)] if smg else [])]


def measure(contender: Contender, gateways: int, load: Load) -> Sample:
    """Plays all sessions through a router that was started anew.

    Args:
        contender: the router.
        gateways: how many.
        load: what the clients do.

    Raises:
        FleetError: a router did not start, an answer was not whole, or a request reached no server or two.
    """
    key = keys.api_key()
    talks = affinity_client.conversations(load.sessions, load.turns, MODEL, key, named=contender.named)
    busy = busy_processors(seconds=_LOOK_SECONDS) if load.looks else None
    # Unix sockets are in it, whose paths have 107 characters at most.
    with (
        tempfile.TemporaryDirectory(prefix="vf-", dir="/tmp") as folder,
        affinity_routers.servers(_SERVERS, load.token_seconds) as servers,
        contender.start(servers, gateways, Path(folder), key) as router,
    ):
        ways = router.gateways

        def place(session: int, turn: int) -> tuple[str, int]:
            # Without a router a client stays at its server.
            return ways[(session if contender.name == DIRECT else session + turn) % len(ways)]

        idle = _idle_cpu(router) if load.looks else 0.0
        used = router.cpu_seconds()
        times = asyncio.run(affinity_client.play(talks, place, load.pause_seconds))
        used = router.cpu_seconds() - used
        served = affinity_routers.served_requests(servers)
    returned, spread = judge(talks, served)
    return Sample(returned, spread, median(times) * 1000, used / len(times) * 1000, idle, busy)


def _idle_cpu(router: Router) -> float:
    """Processors that a router keeps busy without a request."""
    used, began = router.cpu_seconds(), time.monotonic()
    time.sleep(_LOOK_SECONDS)
    return (router.cpu_seconds() - used) / (time.monotonic() - began)


def judge(talks: Sequence[Conversation], served: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The share of turns that returned to the server of the turn before, and the load of the busiest server / mean.

    Args:
        talks: what was asked.
        served: what the servers got, in the order of arrival.

    Raises:
        FleetError: a request reached no server, or more than one.
    """
    by_session: dict[str, list[int]] = {}
    for request in served:
        by_session.setdefault(request["session"], []).append(request["server"])
    for number, talk in enumerate(talks):
        asked, got = len(talk.requests), len(by_session.get(talk.session, ()))
        if asked != got:
            raise FleetError(f"session {number} asked {asked} times, servers got {got}", code=ErrorCode.WORK_FAILED)
    steps = [before == after for turns in by_session.values() for before, after in pairwise(turns)]
    counts = Counter(request["server"] for request in served)
    return sum(steps) / len(steps), max(counts.values()) * _SERVERS / len(served)


def measure_all(all_of_them: Sequence[Contender], load: Load, runs: int) -> list[Row]:
    """Measures every router with one gateway and with two, in turns.

    Args:
        all_of_them: the routers.
        load: what the clients do.
        runs: how often.
    """
    samples: dict[tuple[str, int], list[Sample]] = {}
    for run in range(1, runs + 1):
        for contender, gateways in _cases(all_of_them):
            with Heartbeat(f"bench: run {run} of {runs}, {contender.name}, gateways: {gateways}"):
                samples.setdefault((contender.name, gateways), []).append(measure(contender, gateways, load))
    return [Row(name, gateways, tuple(taken)) for (name, gateways), taken in samples.items()]


def _cases(all_of_them: Sequence[Contender]) -> Iterator[tuple[Contender, int]]:
    yield Contender(DIRECT, affinity_routers.direct, named=True), 0
    for contender in all_of_them:
        yield contender, 1
        yield contender, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit code is 0, or that of the error."""
    parser = argparse.ArgumentParser(prog="python -m bench.affinity", description=__doc__)
    parser.add_argument("--runs", type=int, default=_RUNS, help=f"how often (default: {_RUNS}, nine minutes)")
    parser.add_argument("--sessions", type=int, default=Load.sessions, help=f"default: {Load.sessions}")
    parser.add_argument("--only", default="", metavar="TEXT", help="only routers with this text in their name")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--no-write", action="store_true", help="leave docs/performance.md as it is")
    chosen = parser.parse_args(arguments)
    load = Load(sessions=chosen.sessions)
    try:
        with state.locked("bench-affinity"):
            smg = uv.group_environment("routers", "smg") / "bin/smg"
            asked = [contender for contender in contenders(smg) if chosen.only in contender.name]
            rows = measure_all(asked, load, chosen.runs)
    except FleetError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    file = paths.root() / "docs" / "performance.md"
    if not chosen.no_write and not chosen.only:
        section = affinity_report.section(rows, load.sessions, load.turns)
        write_atomically(file, replace_section(file.read_text(encoding="utf-8"), section))
    record = [row.record() for row in rows]
    print(json.dumps(record, indent=2) if chosen.json else "\n".join(affinity_report.table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
