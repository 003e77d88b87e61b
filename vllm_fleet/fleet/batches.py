"""The order of a rollout: which hosts change together, and after which others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vllm_fleet.schema.rollout import Rollout, hosts_of


@dataclass(frozen=True)
class Member:
    """One serving host, as the order of a rollout sees it.

    Attributes:
        name: the host.
        line: what hosts with the same class and the same release have in common: they share a canary.
        model: what it serves; all its hosts are one backend of the gateways.
        changes: whether the rollout has something to do on it; None: unknown, since it was not probed.
        idle: whether it serves nothing yet, so that it takes no capacity away.
    """

    name: str
    line: str
    model: str
    changes: bool | None
    idle: bool


@dataclass(frozen=True)
class Step:
    """One batch of a rollout.

    Attributes:
        hosts: the names of its hosts.
        canaries: those of them that are the first ones of their line.
    """

    hosts: tuple[str, ...]
    canaries: tuple[str, ...]


@dataclass
class _Line:
    """The hosts of a line that are left, and its place in the steps.

    Attributes:
        total: all hosts of the line.
        step: which of the steps it is at; the first one is the canary.
        left: how many hosts that step still takes.
    """

    total: int
    waiting: list[Member]
    step: int = 0
    left: int = 0
    #: Whether a host has the release already, and was accepted with it.
    proven: bool = False
    taken: list[Member] = field(default_factory=list)


def plan_batches(members: Sequence[Member], rollout: Rollout, *, canaries: bool = True) -> tuple[Step, ...]:
    """The batches of a rollout, one after the other.

    The first batch of a line is its canary; after it, hosts that serve nothing come side by side, and hosts that serve
    in the steps of the fleet. Lines go side by side, as long as each model keeps enough hosts in traffic. A line of
    which a host already has the release, and was accepted with it, continues where it was.

    Args:
        members: every serving host of the fleet, in the order of the plan.
        rollout: the fleet's steps.
        canaries: whether the first host of each line goes alone.

    Returns:
        The batches in their order.
    """
    serving = Counter(member.model for member in members)
    limits = {model: hosts_of(rollout.max_unavailable, total) for model, total in serving.items()}
    lines = _lines(members, rollout)
    for line in lines:
        line.proven |= not canaries
    batches: list[Step] = []
    while any(line.waiting for line in lines):
        free = Counter(limits)
        batch: list[str] = []
        first: list[str] = []
        for line in lines:
            taken = [member.name for member in _take(line, free)]
            batch += taken
            first += [] if line.proven else taken
        for line in lines:
            _advance(line, rollout)
        batches.append(Step(tuple(batch), tuple(first)))
    return tuple(batches)


def _lines(members: Iterable[Member], rollout: Rollout) -> list[_Line]:
    by_line: dict[str, list[Member]] = {}
    for member in members:
        by_line.setdefault(member.line, []).append(member)
    lines = []
    for group in by_line.values():
        # A canary that serves nothing takes no capacity away.
        waiting = sorted((member for member in group if member.changes), key=lambda member: not member.idle)
        done = sum(member.changes is False for member in group)
        line = _Line(len(group), waiting, proven=done > 0)
        line.left = hosts_of(rollout.batches[0], line.total)
        while done >= line.left and line.step < len(rollout.batches) - 1:
            done -= line.left
            line.step += 1
            line.left = hosts_of(rollout.batches[line.step], line.total)
        if 0 < done < line.left:
            line.left -= done
        lines.append(line)
    return lines


def _take(line: _Line, free: Counter[str]) -> list[Member]:
    """The hosts of a line for the next batch; ``free`` has how many each model can still spare."""
    taken: list[Member] = []
    for member in line.waiting:
        if member.idle and (line.proven or not taken):
            taken.append(member)
        elif not member.idle and line.left > len([each for each in taken if not each.idle]) and free[member.model] > 0:
            free[member.model] -= 1
            taken.append(member)
        if not line.proven and taken:
            break
    line.waiting = [member for member in line.waiting if member not in taken]
    line.taken = taken
    return taken


def _advance(line: _Line, rollout: Rollout) -> None:
    if not line.taken:
        return
    line.left -= len(line.taken) if not line.proven else len([each for each in line.taken if not each.idle])
    line.proven = True
    while line.left <= 0:
        line.step = min(line.step + 1, len(rollout.batches) - 1)
        line.left += hosts_of(rollout.batches[line.step], line.total)
    line.taken = []
