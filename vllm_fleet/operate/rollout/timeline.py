"""The events of a record -> each host with its phases, gates and outcome, for tables and reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_fleet.operate.rollout.hosts import REFUSED, tell_refused
from vllm_fleet.operate.rollout.record import (
    BatchBegun,
    Counted,
    Ended,
    Event,
    GateJudged,
    InstanceStarted,
    Kept,
    Left,
    Outcome,
    PhaseBegun,
    PhaseEnded,
    ReleaseChange,
    Run,
)

#: What a gateway counts -> what people call it. A retry reached its client late; all others may have lost a request.
COUNTED: Mapping[str, str] = {
    "hrsp_5xx": "answers with 5xx",
    "srv_abrt": "answers cut",
    "eresp": "errors of answers",
    "econ": "failed connections",
    "wretr": "retries",
}


@dataclass
class Span:
    """A step of a host, with its begin and end in seconds since 1970; without an end it is under way."""

    phase: str
    instance: str
    gates: tuple[str, ...]
    begin: float
    end: float | None = None
    failed: bool = False

    def seconds(self, now: float) -> float:
        """How long it took, or has taken until now."""
        return max(0.0, (now if self.end is None else self.end) - self.begin)


@dataclass
class HostLine:
    """What is known of a host.

    Attributes:
        batch: the number of its batch, from 1; 0 before it has begun.
        starts: its instances that have started.
        gates: the results of its gates.
        change: the release that it gets; None if it has it.
        left: whether the run ended before it.
    """

    name: str
    batch: int = 0
    spans: list[Span] = field(default_factory=list)
    starts: list[InstanceStarted] = field(default_factory=list)
    gates: list[GateJudged] = field(default_factory=list)
    change: ReleaseChange | None = None
    outcome: Outcome | None = None
    left: bool = False

    @property
    def current(self) -> Span | None:
        """The step that is under way."""
        return next((span for span in reversed(self.spans) if span.end is None), None)

    @property
    def state(self) -> str:
        """What became of it, or where it is, in a word."""
        if self.outcome:
            return self.outcome.state
        if self.left:
            return "left"
        return self.current.phase if self.current else "in work" if self.batch else "waits"

    @property
    def tokens_per_second(self) -> float | None:
        """What the speed gate has measured."""
        speeds = [result.figures.get("tokens_per_second") for result in self.gates if result.gate == "speed"]
        return next((float(speed) for speed in reversed(speeds) if isinstance(speed, int | float)), None)

    @property
    def is_refused(self) -> bool:
        """Whether it does not serve the release of the run, though its batch was worked on."""
        return self.outcome is not None and self.outcome.state in REFUSED


@dataclass
class Timeline:
    """What a run has done so far; events are added one after the other.

    Attributes:
        run: how it began; None before the first event.
        hosts: name -> what is known.
        ended: how it ended; None while it works, or if it was killed.
        at: the time of the last event, in seconds since 1970.
    """

    run: Run | None = None
    hosts: dict[str, HostLine] = field(default_factory=dict)
    batches: int = 0
    ended: Ended | None = None
    at: float = 0.0
    _before: dict[tuple[str, str], dict[str, dict[str, int]]] = field(default_factory=dict)
    _lost: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, events: Iterable[Event]) -> Timeline:
        """The timeline of a whole record."""
        made = cls()
        for event in events:
            made.add(event)
        return made

    def add(self, event: Event) -> None:
        """Takes the next event in."""
        self.at = event.at
        if isinstance(event, Run):
            self.run = event
            self.hosts |= {name: HostLine(name) for name in event.hosts}
        elif isinstance(event, BatchBegun):
            self.batches += 1
            for name in event.hosts:
                self._host(name).batch = self.batches
        elif isinstance(event, Left):
            for name in event.hosts:
                self._host(name).left = True
        elif isinstance(event, Ended):
            self.ended = event
            for host in self.hosts.values():
                host.left = host.left or not (host.batch or host.outcome)
        elif isinstance(event, Counted):
            self._count(event)
        elif not isinstance(event, Kept):
            self._add_to_host(self._host(event.host), event)

    def _host(self, name: str) -> HostLine:
        return self.hosts.setdefault(name, HostLine(name))

    @staticmethod
    def _add_to_host(
        host: HostLine, event: ReleaseChange | PhaseBegun | PhaseEnded | InstanceStarted | GateJudged | Outcome
    ) -> None:
        if isinstance(event, PhaseBegun):
            host.spans.append(Span(event.phase, event.instance, tuple(event.gates), event.at))
        elif isinstance(event, PhaseEnded):
            for span in reversed(host.spans):
                if span.end is None and (span.phase, span.instance) == (event.phase, event.instance):
                    span.end, span.failed = event.at, event.failed
                    break
        elif isinstance(event, InstanceStarted):
            host.starts.append(event)
        elif isinstance(event, GateJudged):
            host.gates.append(event)
        elif isinstance(event, ReleaseChange):
            host.change = event
        else:
            host.outcome = event

    def _count(self, event: Counted) -> None:
        # Batches of two regions may go side by side; each counts from its own begin.
        place = (event.region, event.gateway)
        if not event.batch_ends:
            self._before[place] = event.backends
            return
        before = self._before.pop(place, None)
        if before is None:
            return
        for backend, figures in event.backends.items():
            total = self._lost.setdefault((event.gateway, backend), Counter())
            for name, value in figures.items():
                old = before.get(backend, {}).get(name, 0)
                # HAProxy counts anew after a restart.
                total[name] += value - old if value >= old else value

    @property
    def lost(self) -> Mapping[tuple[str, str], Mapping[str, int]]:
        """Gateway and backend -> what went wrong with requests, as counted before and after batches."""
        return self._lost

    @property
    def refused(self) -> list[HostLine]:
        """The hosts that do not serve the release of the run."""
        return [host for host in self.hosts.values() if host.is_refused]

    @property
    def accepted(self) -> list[HostLine]:
        """The hosts that serve it."""
        return [host for host in self.hosts.values() if host.outcome and host.outcome.state == "serving"]

    @property
    def summary(self) -> str:
        """What the run has done, in a line."""
        total = len(self.hosts)
        if self.run and self.run.check:
            changed = sum(1 for host in self.hosts.values() if host.outcome and host.outcome.changed)
            return f"{changed} of {total} hosts would change"
        parts = [f"{len(self.accepted)} of {total} hosts serve the release"]
        if self.refused:
            parts.append(f"{len(self.refused)} {'do' if len(self.refused) > 1 else 'does'} not")
        if left := sum(host.left for host in self.hosts.values()):
            parts.append(f"{left} are left as they are" if left > 1 else "1 is left as it is")
        if self.ended is None:
            parts.append("the run has not ended")
        return ", ".join(parts)


def figures_text(figures: Mapping[str, Any]) -> str:
    """The figures of a gate in a line."""
    return ", ".join(f"{name} {_number(value)}" for name, value in figures.items())


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_refused(host: HostLine) -> list[str]:
    """Why a host does not serve the release, for people: the gate, its figures, and the lines of the log.

    Args:
        host: one whose outcome is known.
    """
    outcome = host.outcome
    if outcome is None or not host.is_refused:
        return []
    lines = [tell_refused(host.name, outcome.state, outcome.gate, outcome.why)]
    refused = [result for result in host.gates if not result.passed]
    lines += [f"  {result.gate}: {figures_text(result.figures)}" for result in refused if result.figures]
    return lines + [f"  {line}" for line in outcome.log]
