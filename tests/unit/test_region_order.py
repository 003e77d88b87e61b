"""When regions begin and stop, and how a rollout over all of them ends; the workers play a script."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from vllm_fleet.base import paths
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.edge.worker import Transmitted
from vllm_fleet.operate.rollout import record, regions, run
from vllm_fleet.operate.rollout.record import BatchBegun, Ended, Event, Kept, Left, Outcome, PhaseBegun, Run
from vllm_fleet.operate.rollout.references import Reference
from vllm_fleet.operate.rollout.timeline import Timeline

#: What a worker does: each step is an event, or waits until something is true.
Step = Event | str | Callable[[], bool]


def began(*hosts: str) -> Run:
    return Run(at=1.0, owner="a worker", fleet="f", kind="rollout", check=False, hosts=list(hosts))


def batch(*hosts: str) -> BatchBegun:
    return BatchBegun(at=1.0, hosts=list(hosts))


def outcome(host: str, state: str = "serving") -> Outcome:
    more = {
        "why": "",
        "gate": "",
        "log": [],
        "seconds": {},
        "changed": True,
        "before": {},
        "results": [],
        "speed": None,
    }
    return Outcome(at=1.0, host=host, state=state, **more)


DONE = Ended(at=1.0, state="done")


def well(*hosts: str) -> list[Step]:
    return [began(*hosts), *(each for host in hosts for each in (batch(host), outcome(host))), DONE]


@dataclass
class Worker:
    """Stands in for a run on a worker."""

    scripts: ClassVar[dict[str, list[Step]]] = {}
    faults: ClassVar[dict[str, FleetError]] = {}
    log: ClassVar[list[str]] = []

    target: Target
    python: str
    place: str
    environment: Mapping[str, str]
    on_event: Callable[[Mapping[str, Any]], None]
    _left: list[Step] = field(default_factory=list)
    _running: bool = False

    def start(self, stream: bytes) -> None:  # noqa: ARG002 - as its original
        self.log.append(f"{self.target.name} begins")
        self._left, self._running = list(self.scripts[self.target.name]), True

    @property
    def is_running(self) -> bool:
        """Plays its next step each time that it is asked."""
        if self._running and self._left and (not callable(self._left[0]) or self._left[0]()):
            step = self._left.pop(0)
            if not callable(step):
                line = step if isinstance(step, str) else step.model_dump_json()
                self.on_event({"event": "verbose", "stdout": f"{record.EVENT_MARK}{line}"})
        self._running = self._running and bool(self._left)
        return self._running

    @property
    def returncode(self) -> int:
        return int(self.target.name in self.faults or "refused" in str(self.scripts[self.target.name]))

    def error(self) -> FleetError | None:
        return self.faults.get(self.target.name)

    def ask_to_stop(self) -> None:
        self.log.append(f"{self.target.name} is asked to stop")

    def kill(self) -> None:
        self.log.append(f"{self.target.name} is killed")
        self._running = False

    def end(self) -> None:
        """Nothing is left."""


class Heard:
    """Does something when an event comes."""

    def __init__(self, on_event: Callable[[Event], None] = lambda _: None) -> None:
        self.notes: list[str] = []
        self._on_event = on_event

    def hear_event(self, event: Event, timeline: Timeline) -> None:  # noqa: ARG002 - of the protocol
        self._on_event(event)

    def hear_task(self, task: str) -> None:
        """Not looked at."""

    def hear_output(self, text: str) -> None:
        """Not looked at."""

    def hear_interrupt(self, text: str) -> None:
        self.notes.append(text)

    def look_on(self, timeline: Timeline) -> None:
        """Not looked at."""


@pytest.fixture(autouse=True)
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "run_dir", lambda fleet: tmp_path / "state" / fleet)
    monkeypatch.setattr(regions, "WorkerPlaybook", Worker)
    monkeypatch.setattr(regions, "look_at_workers", lambda found: {each.name: "/folder" for each in found})
    monkeypatch.setattr(Transmitted, "stream", lambda _: b"")
    monkeypatch.setattr(run, "LOOK_SECONDS", 0.001)
    Worker.scripts, Worker.faults, Worker.log = {}, {}, []


def order(**options: Any) -> regions.Order:
    found = []
    for name, script in Worker.scripts.items():
        hosts = [f"{name}-0", f"{name}-1"]
        found.append(regions.Region(name, Target(name, "10.0.0.1", 22, "fleet", ()), "/python", hosts, hosts))
        del script
    return regions.Order("f", found, Transmitted(Path("/x"), "site.yml", Path("/x/fleet.yml"), []), **options)


def drive(heard: Heard | None = None, **options: Any) -> run.Finished:
    return regions.drive(order(**options), heard or Heard())


def begins(log: Sequence[str]) -> list[str]:
    return [line.removesuffix(" begins") for line in log if line.endswith("begins")]


def test_the_others_begin_side_by_side_when_the_first_is_accepted() -> None:
    def both_have_begun() -> bool:
        return begins(Worker.log) == ["a", "b", "c"]

    Worker.scripts = {"a": well("a-0", "a-1"), "b": [both_have_begun, *well("b-0")], "c": well("c-0")}
    finished = drive()
    assert finished.error() is None
    assert begins(Worker.log) == ["a", "b", "c"]
    assert finished.timeline.summary == "4 of 4 hosts serve the release"
    assert finished.file
    events = record.read_record(finished.file)
    assert {event.region for event in events if isinstance(event, BatchBegun)} == {"a", "b", "c"}
    assert len({event.owner for event in events if isinstance(event, Run)}) == 1
    assert [event.state for event in events if isinstance(event, Ended)] == ["done"]


def test_the_others_may_begin_after_the_canary_of_the_first() -> None:
    def b_has_begun() -> bool:
        return begins(Worker.log) == ["a", "b"]

    script: list[Step] = [began("a-0", "a-1"), batch("a-0"), outcome("a-0"), b_has_begun, batch("a-1"), outcome("a-1")]
    Worker.scripts = {"a": [*script, DONE], "b": well("b-0")}
    assert drive(after="canary").error() is None


@pytest.mark.parametrize("after", ["region", "canary"])
def test_no_region_begins_after_a_refused_canary(after: str) -> None:
    refused = [began("a-0", "a-1"), batch("a-0"), outcome("a-0", "returned"), Ended(at=1.0, state="refused", why="no")]
    Worker.scripts = {"a": refused, "b": well("b-0")}
    finished = drive(after=after)
    error = finished.error()
    assert error
    assert error.exit_code == 1
    assert begins(Worker.log) == ["a"]
    assert finished.file
    left = [event.hosts for event in record.read_record(finished.file) if isinstance(event, Left)]
    assert left == [["b-0", "b-1"]]


def test_a_refused_host_stops_the_regions_beside_it() -> None:
    def c_is_asked() -> bool:
        return "c is asked to stop" in Worker.log

    refused = [began("b-0"), batch("b-0"), outcome("b-0", "returned"), Ended(at=1.0, state="refused", why="no")]
    paused = Ended(at=1.0, state="paused", why="it was asked")
    Worker.scripts = {
        "a": well("a-0"),
        "b": refused,
        "c": [began("c-0", "c-1"), batch("c-0"), outcome("c-0"), c_is_asked, paused],
    }
    finished = drive()
    assert finished.timeline.ended
    assert finished.timeline.ended.state == "refused"
    assert Worker.log.count("c is asked to stop") == 1


def test_a_first_region_without_changes_lets_the_others_begin() -> None:
    Worker.scripts = {"a": [lambda: True], "b": well("b-0")}
    finished = drive()
    assert finished.error() is None
    assert finished.timeline.summary == "1 of 1 hosts serve the release"


def test_a_pause_after_the_canary_begins_no_other_region() -> None:
    paused = Ended(at=1.0, state="paused", why="the first batch was accepted")
    Worker.scripts = {"a": [began("a-0", "a-1"), batch("a-0"), outcome("a-0"), paused], "b": well("b-0")}
    finished = drive()
    assert finished.error() is None
    assert begins(Worker.log) == ["a"]
    assert record.find_unfinished("f")


def test_a_region_that_is_refused_after_another_was_changed_is_no_exit_code_2() -> None:
    Worker.scripts = {"a": well("a-0"), "b": [lambda: True]}
    Worker.faults = {"b": FleetError("another run works there", host="b", code=ErrorCode.REFUSED)}
    error = drive().error()
    assert error
    assert (error.exit_code, error.host) == (1, "b")


def test_alone_it_is_exit_code_2() -> None:
    Worker.scripts = {"a": [lambda: True], "b": well("b-0")}
    Worker.faults = {"a": FleetError("another run works there", host="a", code=ErrorCode.REFUSED)}
    finished = drive()
    error = finished.error()
    assert error
    assert (error.exit_code, finished.file, begins(Worker.log)) == (2, None, ["a"])


@pytest.mark.parametrize("line", ["no json", '{"event": "batch"}', '{"at": 1, "event": "other", "host": "a-0"}'])
def test_a_worker_that_sends_no_event_is_ended(line: str) -> None:
    Worker.scripts = {"a": [began("a-0"), line, lambda: False], "b": well("b-0")}
    finished = drive()
    error = finished.error()
    assert error
    assert (error.exit_code, error.host) == (1, "a")
    assert "a is killed" in Worker.log
    assert begins(Worker.log) == ["a"]
    assert finished.timeline.ended
    assert finished.timeline.ended.state == "failed"


def test_an_event_of_a_host_of_no_region_is_not_kept() -> None:
    Worker.scripts = {"a": [*well("a-0")[:-1], outcome("../x"), DONE]}
    finished = drive()
    assert set(finished.timeline.hosts) == {"a-0"}


def test_ctrl_c_twice_ends_all_at_once() -> None:
    presses: list[int] = []

    def press(event: Event) -> None:
        if isinstance(event, PhaseBegun):
            presses.append(1)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    start = PhaseBegun(at=1.0, host="a-0", phase="start")
    Worker.scripts = {"a": [began("a-0"), batch("a-0"), start, lambda: False], "b": well("b-0")}
    heard = Heard(press)
    error = drive(heard).error()
    assert error
    assert error.exit_code == 130
    assert (presses, heard.notes) == ([1], [run.ENDS_NOW])
    assert Worker.log == ["a begins", "a is asked to stop", "a is killed"]


def test_references_of_canaries_are_kept_for_later_regions(tmp_path: Path) -> None:
    reference = Reference(host_class="c", engine="e", host="a-0", at=1.0, logprobs={"x": [1.0]})
    kept = Kept(at=1.0, host="a-0", folder="openai--x", file="c--e--1.json", text=reference.text())
    Worker.scripts = {"a": [began("a-0"), batch("a-0"), kept, outcome("a-0"), DONE]}
    folders = [tmp_path / "fleet", tmp_path / "sent"]
    finished = drive(references=folders)
    assert finished.error() is None
    for folder in folders:
        assert (folder / "openai--x" / "c--e--1.json").read_text(encoding="utf-8") == reference.text()
    assert finished.file
    assert "logprobs" not in finished.file.read_text(encoding="utf-8")


@pytest.mark.parametrize(("folder", "text"), [("..", None), ("a/b", None), ("x", "{}"), ("x", "no json")])
def test_what_is_no_reference_is_not_kept(tmp_path: Path, folder: str, text: str | None) -> None:
    reference = Reference(host_class="c", engine="e", host="a-0", at=1.0, logprobs={"x": [1.0]}).text()
    kept = Kept(at=1.0, host="a-0", folder=folder, file="y.json", text=reference if text is None else text)
    Worker.scripts = {"a": [began("a-0"), kept, lambda: False]}
    finished = drive(references=[tmp_path / "fleet"])
    assert finished.error()
    assert "a is killed" in Worker.log
    assert not (tmp_path / "fleet").exists()
    assert not (tmp_path / "y.json").exists()
