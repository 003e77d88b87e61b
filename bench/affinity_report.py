"""The routers side by side as a section of ``docs/performance.md``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench import load, machine
from bench.affinity_client import SYSTEM_BYTES, TOKENS
from bench.markdown import markdown, paragraph
from bench.results import Runs

TITLE = "## Sessions that return to their server"
DIRECT = "no router"


@dataclass(frozen=True)
class Sample:
    """One run of all sessions.

    Attributes:
        returned: share of the turns, without the first of each session, that got the server of the turn before.
        spread: requests of the busiest server / mean of all servers.
        first_ms: median milliseconds from a request to the first byte of its answer's body.
        cpu_ms: milliseconds of the router's CPU for each request.
        idle: processors that the router kept busy before the first request.
        load: processors that were busy before the router started; None if that was not measured.
    """

    returned: float
    spread: float
    first_ms: float
    cpu_ms: float
    idle: float
    load: float | None = None


@dataclass(frozen=True)
class Row(Runs[Sample]):
    """All runs of one router; ``hosts`` is the number of its gateways, 0 without a router."""

    @property
    def returned(self) -> float:
        """Median share of turns that returned."""
        return self.median(lambda sample: sample.returned)

    @property
    def spread(self) -> float:
        """Median of the busiest server / mean."""
        return self.median(lambda sample: sample.spread)

    @property
    def cpu_ms(self) -> float:
        """Median milliseconds of CPU for each request."""
        return self.median(lambda sample: sample.cpu_ms)

    @property
    def idle(self) -> float:
        """Median of the processors that the router kept busy without a request."""
        return self.median(lambda sample: sample.idle)

    def added_ms(self, direct: Row) -> float:
        """Median milliseconds that the router adds to the first token, each run compared with the direct one of it."""
        pairs = zip(self.samples, direct.samples, strict=True)
        return Runs("", 0, tuple(own.first_ms - other.first_ms for own, other in pairs)).median(float)

    def record(self) -> dict[str, Any]:
        """The row as plain data."""
        return {
            "name": self.name,
            "gateways": self.hosts,
            "runs": len(self.samples),
            "returned": round(self.returned, 3),
            "spread": round(self.spread, 3),
            "first_token_ms": round(self.median(lambda sample: sample.first_ms), 2),
            "router_cpu_ms_per_request": round(self.cpu_ms, 2),
            "router_idle_processors": round(self.idle, 3),
        }


def table(rows: Sequence[Row]) -> list[str]:
    """The routers as a table; that without a router is what the others add to.

    Args:
        rows: all rows, one of them named :data:`DIRECT`.
    """
    direct = next(row for row in rows if row.name == DIRECT)
    lines = [
        (
            "",
            "gateways",
            "turns that return",
            "busiest server / mean",
            "added to the first token [ms]",
            "router CPU [ms/request]",
            "without a request [processors]",
        )
    ]
    for row in rows:
        if row is not direct:
            lines.append(
                (
                    row.name,
                    str(row.hosts),
                    f"{row.returned:.0%}".replace("%", " %"),
                    f"{row.spread:.2f}",
                    f"{row.added_ms(direct):.1f}",
                    f"{row.cpu_ms:.1f}",
                    f"{row.idle:.2f}",
                )
            )
    return markdown(lines, right={1, 2, 3, 4, 5, 6})


def section(rows: Sequence[Row], sessions: int, turns: int) -> list[list[str]]:
    """The section as blocks of lines.

    Args:
        rows: all rows.
        sessions: how many sessions there were.
        turns: how many questions each asked.
    """
    runs = len(rows[0].samples)
    noise = load.describe_load(load.worst(sample.load for row in rows for sample in row.samples), "before each run")
    return [
        [TITLE],
        paragraph(
            f"{sessions} sessions side by side ask {turns} times each, about every two seconds. Every request has the "
            "whole conversation so far, in the order of keys that the OpenAI client for Python writes, behind a system "
            f"prompt of {SYSTEM_BYTES} bytes that all share. Three stand-ins of vLLM answer with {TOKENS} tokens as a "
            "stream. A turn that returns to the server of the turn before finds its beginning in the cache. With two "
            "gateways the turns of a session go to them in alternation. "
            f"{'One run' if runs == 1 else f'Median of {runs} runs, in turns'}."
        ),
        table(rows),
        paragraph(
            "`named` means that the client sends `prompt_cache_key`. HAProxy has the configuration of a fleet's "
            "gateways, which checks the API key and reads the body; gateways are peers. smg is a router that keeps "
            "the beginnings of all prompts; it sends no request twice, and its two gateways are a mesh. Clients, "
            "servers and router share the processors, so compare the times and the CPU with each other. "
            f"{noise} Decision: [ADR 13](adr/0013-haproxy-and-no-second-router.md)."
        ),
        paragraph(f"Printed by `python -m bench.affinity`, processors: {machine.processors()}."),
    ]
