"""A rollout as a command drives it: the playbook in the background, its record as it grows, and how it ends."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vllm_fleet.base import paths
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.edge.playbook import BackgroundPlaybook
from vllm_fleet.operate.rollout import record
from vllm_fleet.operate.rollout.record import Event
from vllm_fleet.operate.rollout.timeline import Timeline

LOOK_SECONDS = 0.2
ENDS_SOON = "the rollout ends after the batch in work; press Ctrl-C again to end it at once"
ENDS_NOW = "the rollout ends at once; hosts that are at work go back by themselves within 10 minutes"


@dataclass(frozen=True)
class Order:
    """What is run.

    Attributes:
        fleet: the fleet's name.
        inventory: its inventory, a file.
        book: the playbook.
        arguments: arguments of ``ansible-playbook``, such as ``--limit``.
        become_password: the password for sudo on the hosts.
    """

    fleet: str
    inventory: Path
    book: Path
    arguments: Sequence[str] = ()
    become_password: str | None = None


class Listener(Protocol):
    """Hears how a run goes on; all calls come from one thread."""

    def hear_event(self, event: Event, timeline: Timeline) -> None:
        """The record has one more event."""

    def hear_task(self, task: str) -> None:
        """Ansible has begun a task."""

    def hear_output(self, text: str) -> None:
        """Ansible has printed something."""

    def hear_interrupt(self, text: str) -> None:
        """Ctrl-C was pressed; the text says what follows."""

    def look_on(self, timeline: Timeline) -> None:
        """Called several times a second."""


@dataclass
class Finished:
    """How a run has ended.

    Attributes:
        timeline: what the record has.
        file: the record; None if nothing was to be rolled out.
        returncode: the exit code of ``ansible-playbook``.
        errors: why tasks have failed, each once.
        interrupts: how often Ctrl-C was pressed.
    """

    timeline: Timeline
    file: Path | None
    returncode: int
    errors: list[FleetError]
    interrupts: int

    def error(self) -> FleetError | None:
        """The error of the whole run; None if it did what it was asked to."""
        if self.interrupts > 1:
            return FleetError(
                "interrupted: hosts that were at work go back to their last good release by themselves",
                "run the command again to go on",
                code=ErrorCode.INTERRUPTED,
            )
        if refused := self.timeline.refused:
            names = ", ".join(host.name for host in refused[:10]) + (", ..." if len(refused) > 10 else "")
            return FleetError(
                f"{len(refused)} hosts do not serve the release: {names}",
                "correct what the gate has found, and run the command again",
                code=ErrorCode.WORK_FAILED,
            )
        if self.returncode and self.errors:
            first, *others = sorted(self.errors, key=lambda error: error.exit_code)
            first.others = others
            return first
        if self.returncode:
            return FleetError("ansible-playbook failed", "see its output", code=ErrorCode.WORK_FAILED)
        if self.interrupts:
            return FleetError(
                "interrupted after the batch in work", "run the command again to go on", code=ErrorCode.INTERRUPTED
            )
        return None


@dataclass
class News:
    """What the thread of Ansible has to say, until the other one takes it.

    Attributes:
        pid: the process of ``ansible-playbook``; 0 before its first event.
        tasks: the tasks that have begun.
        output: what it has printed.
        lines: the events of its record, which a worker prints.
        errors: why tasks have failed, each once.
    """

    pid: int = 0
    tasks: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    errors: dict[str, FleetError] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def hear(self, event: Mapping[str, Any]) -> None:
        """Takes an event of Ansible in."""
        kind, data = event.get("event"), event.get("event_data") or {}
        with self._turn:
            self.pid = int(event.get("pid") or self.pid)
            if text := str(event.get("stdout") or ""):
                if text.startswith(record.EVENT_MARK):
                    self.lines += [line.removeprefix(record.EVENT_MARK) for line in text.splitlines()]
                else:
                    self.output.append(text)
            if kind == "playbook_on_task_start":
                self.tasks.append(str(data.get("name") or data.get("task") or ""))
            elif kind in ("runner_on_failed", "runner_on_unreachable") and not data.get("ignore_errors"):
                for error in _errors(data):
                    self.errors.setdefault(str(error), error)

    def take(self) -> tuple[list[str], list[str]]:
        """The tasks and the output since the last time."""
        with self._turn:
            tasks, output, self.tasks, self.output = self.tasks, self.output, [], []
        return tasks, output

    def take_lines(self) -> list[str]:
        """The events of the record since the last time."""
        with self._turn:
            lines, self.lines = self.lines, []
        return lines


def _errors(data: Mapping[str, Any]) -> list[FleetError]:
    """Why a task has failed: the errors that it returns as such, else its message."""
    result = data.get("res") or {}
    known = [each for each in result.get("errors") or () if isinstance(each, Mapping) and "code" in each]
    if known:
        return [
            FleetError(
                str(each["message"]),
                str(each.get("hint") or ""),
                each.get("file"),
                key=each.get("key"),
                host=each.get("host"),
                code=ErrorCode(each["code"]),
            )
            for each in known
        ]
    text = f"{data.get('task')}: {result.get('msg') or 'failed'}"
    return [FleetError(text, host=str(data.get("host") or "") or None, code=ErrorCode.WORK_FAILED)]


@contextmanager
def counted_interrupts(*, twice_raises: bool = False) -> Iterator[list[int]]:
    """Counts how often Ctrl-C is pressed; the list gets an item for each.

    Args:
        twice_raises: whether the second one raises ``KeyboardInterrupt``.
    """
    presses: list[int] = []

    def press(number: int, _: object) -> None:
        presses.append(number)
        if twice_raises and len(presses) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class Follower:
    """Reads a record while it grows."""

    fleet: str
    file: Path | None = None
    lines: int = 0
    _at: int = 0

    def read(self, pid: int) -> list[Event]:
        """The events since the last time.

        Args:
            pid: the process of the run; 0 before it is known.
        """
        if self.file is None and pid:
            self.file = record.find_record(self.fleet, pid)
        if self.file is None:
            return []
        with self.file.open("rb") as opened:
            opened.seek(self._at)
            data = opened.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        events = list(record.read_lines(whole.decode().split("\n")[:-1], self.file, self.lines + 1))
        self.lines += len(events)
        return events


def drive(order: Order, listener: Listener) -> Finished:
    """Runs a rollout to its end. Ctrl-C once ends it after the batch in work, twice at once.

    Args:
        order: what is run.
        listener: hears how it goes on.

    Returns:
        How it has ended.

    Raises:
        FleetError: the record is damaged.
    """
    news, timeline, follower = News(), Timeline(), Follower(order.fleet)
    with tempfile.TemporaryDirectory(prefix="vllm-fleet-") as work, counted_interrupts() as presses:
        stop = Path(work) / "stop"
        arguments = (*order.arguments, "-e", f"fleet_rollout_stop={stop}")
        folder = Path(work) / "runner"
        folder.mkdir(mode=0o700)
        run = BackgroundPlaybook(order.book, order.inventory, arguments, order.become_password, folder, news.hear)
        run.start()
        told = 0
        try:
            while True:
                ends = not run.is_running
                _report(news, follower, timeline, listener)
                if ends:
                    break
                if len(presses) > told:
                    told = len(presses)
                    if told == 1:
                        stop.touch()
                        listener.hear_interrupt(ENDS_SOON)
                    else:
                        listener.hear_interrupt(ENDS_NOW)
                        run.kill(news.pid)
                time.sleep(LOOK_SECONDS)
        finally:
            run.end(news.pid)
        return Finished(timeline, follower.file, run.returncode, list(news.errors.values()), len(presses))


def _report(news: News, follower: Follower, timeline: Timeline, listener: Listener) -> None:
    tasks, output = news.take()
    for text in output:
        listener.hear_output(text)
    for task in tasks:
        listener.hear_task(task)
    for event in follower.read(news.pid):
        timeline.add(event)
        listener.hear_event(event, timeline)
    listener.look_on(timeline)


def find_resumed(fleet: str) -> str:
    """What the next rollout of a fleet resumes, for people; empty if the last one came to its end.

    A record that is damaged, or from a later version, stops no rollout: the hosts themselves know what they have.
    """
    try:
        found = record.find_unfinished(fleet)
    except FleetError as fault:
        return f"cannot tell what it resumes: {fault}"
    if found is None:
        return ""
    file, events = found
    timeline = Timeline.read(events)
    how = timeline.ended.why if timeline.ended and timeline.ended.why else "it was interrupted"
    done = f"{len(timeline.accepted)} of {len(timeline.hosts)} hosts had the release"
    return f"resumes the rollout of {paths.display(file)}: {done}, then {how}"
