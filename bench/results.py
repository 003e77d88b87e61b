"""Samples -> figures: medians, growth, and the fixed cost that does not depend on the number of hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Generic, TypeVar

from bench import load
from bench.measure import Sample

S = TypeVar("S")


@dataclass(frozen=True)
class Runs(Generic[S]):
    """All runs of one program on one number of hosts.

    Attributes:
        name: the program.
        hosts: number of hosts.
        samples: its runs, at least one.
    """

    name: str
    hosts: int
    samples: tuple[S, ...]

    def median(self, figure: Callable[[S], float]) -> float:
        """The median of a figure over the runs."""
        return median(map(figure, self.samples))

    def record(self) -> dict[str, Any]:
        """The runs as plain data."""
        return {"name": self.name, "hosts": self.hosts, "runs": len(self.samples)}


@dataclass(frozen=True)
class Row(Runs[Sample]):
    """All runs of one contender on one number of hosts."""

    @property
    def wall(self) -> float:
        """Median wall seconds."""
        return self.median(lambda sample: sample.wall)

    @property
    def wall_range(self) -> tuple[float, float]:
        """Fastest and slowest wall seconds."""
        walls = [sample.wall for sample in self.samples]
        return min(walls), max(walls)

    @property
    def controller(self) -> float:
        """Median CPU seconds of the controller."""
        return self.median(lambda sample: sample.controller)

    @property
    def controller_per_host(self) -> float:
        """The same in milliseconds per host."""
        return self.controller / self.hosts * 1000

    @property
    def target(self) -> float | None:
        """Median CPU seconds of the target; None where it could not be counted."""
        known = [sample.target for sample in self.samples if sample.target is not None]
        return median(known) if len(known) == len(self.samples) else None

    @property
    def target_per_host(self) -> float | None:
        """The same in milliseconds per host."""
        return None if self.target is None else self.target / self.hosts * 1000

    @property
    def load(self) -> float | None:
        """Processors that other programs kept busy, before or in the worst run; None if it was not measured."""
        return load.worst(sample.load for sample in self.samples)

    def record(self) -> dict[str, Any]:
        """The row as plain data, seconds unless the name says milliseconds."""
        return {
            **super().record(),
            "wall": round(self.wall, 3),
            "wall_min": round(self.wall_range[0], 3),
            "wall_max": round(self.wall_range[1], 3),
            "controller_cpu": round(self.controller, 3),
            "controller_cpu_ms_per_host": round(self.controller_per_host, 2),
            "target_cpu": None if self.target is None else round(self.target, 3),
            "target_cpu_ms_per_host": None if self.target_per_host is None else round(self.target_per_host, 1),
            "other_processes_cpus": None if self.load is None else round(self.load, 2),
        }


@dataclass(frozen=True)
class Growth:
    """A contender on its smallest and its largest number of hosts, and the straight line through both.

    Attributes:
        name: the contender.
        few: its row with the fewest hosts.
        many: its row with the most.
    """

    name: str
    few: Row
    many: Row

    def wall_at(self, hosts: int) -> float:
        """Wall seconds on that line; beyond the measured numbers of hosts it is an extrapolation."""
        return self.few.wall + (hosts - self.few.hosts) * (self.many.wall - self.few.wall) / self._hosts

    @property
    def wall_factor(self) -> float:
        """Wall time of the most hosts, divided by that of the fewest."""
        return self.many.wall / self.few.wall

    @property
    def controller_ms_per_added_host(self) -> float:
        """Milliseconds of controller CPU for one more host."""
        return (self.many.controller - self.few.controller) / self._hosts * 1000

    @property
    def controller_fixed(self) -> float:
        """CPU seconds of the controller that do not depend on the number of hosts: start-up, files, plan."""
        return self.few.controller - self.few.hosts * self.controller_ms_per_added_host / 1000

    @property
    def _hosts(self) -> int:
        return self.many.hosts - self.few.hosts

    def record(self) -> dict[str, Any]:
        """The growth as plain data."""
        return {
            "name": self.name,
            "from": self.few.hosts,
            "to": self.many.hosts,
            "wall_factor": round(self.wall_factor, 2),
            "controller_ms_per_added_host": round(self.controller_ms_per_added_host, 2),
            "controller_fixed": round(self.controller_fixed, 3),
        }


def growths(rows: Sequence[Row], sizes: Sequence[int]) -> list[Growth]:
    """The growth of every contender that ran on two numbers of hosts or more, in the order of the rows.

    Args:
        rows: all rows.
        sizes: the numbers of hosts to compare; a contender that ran on others only is compared on those.
    """
    grown = []
    for name in dict.fromkeys(row.name for row in rows):
        every = sorted((row for row in rows if row.name == name), key=lambda row: row.hosts)
        chosen = [row for row in every if row.hosts in sizes]
        own = chosen if len(chosen) > 1 else every
        if len(own) > 1:
            grown.append(Growth(name, own[0], own[-1]))
    return grown


def differences(steps: Sequence[Row]) -> list[tuple[str, float | None]]:
    """The cost of each step alone, in milliseconds of target CPU, from steps of which each includes the one before."""
    costs: list[tuple[str, float | None]] = []
    before: float | None = 0.0
    for row in steps:
        now = row.target_per_host
        costs.append((row.name, None if now is None or before is None else now - before))
        before = now
    return costs
