"""The record of a rollout: a file of JSON lines on the controller, one for each thing that has happened.

Every process of a run appends to the same file, each line in one write, so that lines never mix. A run that was killed
may leave half a line at the end.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.yaml_reader import is_secret_name
from vllm_fleet.operate import run_owner
from vllm_fleet.operate.rollout.hosts import Progress

#: So many records of a fleet are kept.
KEPT = 50
SUFFIX = ".jsonl"
#: What a line of output begins with that is an event, for a controller that reads the output of a worker.
EVENT_MARK = "vllm-fleet-event "
#: A line of a diff that sets a value, also in a list: its sign and name, and the value.
_SETS = re.compile(r"""([+-]\s*(?:- )?["']?([\w-]+)["']?\s*[=:]\s*)\S.*""")
Kind = Literal["rollout", "rollback"]
End = Literal["done", "refused", "paused", "failed"]


class _Event(BaseModel):
    """What has happened.

    Attributes:
        at: when, in seconds since 1970.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: float


class Run(_Event):
    """A run has begun.

    Attributes:
        owner: its name, as :mod:`vllm_fleet.operate.run_owner` gives it.
        fleet: the fleet.
        kind: whether it brings a new release, or goes back to the one before.
        check: whether it only says what it would change.
        hosts: all that it is about.
        region: the region that has begun, of a fleet with workers; such a record has a run for each.
    """

    event: Literal["run"] = "run"
    owner: str
    fleet: str
    kind: Kind
    check: bool
    hosts: list[str]
    region: str = ""


class BatchBegun(_Event):
    """A batch has begun, of a region if the fleet has workers."""

    event: Literal["batch"] = "batch"
    hosts: list[str]
    region: str = ""


class ReleaseChange(_Event):
    """The release that a host gets.

    Attributes:
        old: the one that was accepted last; empty on a host that never served.
        new: the one that is put on trial.
        lines: a diff of their files.
    """

    event: Literal["release"] = "release"
    host: str
    old: str
    new: str
    lines: list[str]


class PhaseBegun(_Event):
    """A host is at a step; ``gates`` has those that are asked in it."""

    event: Literal["begin"] = "begin"
    host: str
    phase: str
    instance: str = ""
    gates: list[str] = []


class PhaseEnded(_Event):
    """A step of a host is over: how long it took, in seconds, and whether it led on."""

    event: Literal["end"] = "end"
    host: str
    phase: str
    instance: str = ""
    seconds: float
    failed: bool = False


class InstanceStarted(_Event):
    """An instance has answered a completion: how long that took, in seconds, and what vLLM has logged of its steps."""

    event: Literal["started"] = "started"
    host: str
    instance: str
    seconds: float
    steps: dict[str, float]


class GateJudged(_Event):
    """What a gate has found on an instance; ``waived`` is the reason why it was not asked."""

    event: Literal["gate"] = "gate"
    host: str
    gate: str
    instance: str
    passed: bool
    why: str
    lines: list[str]
    figures: dict[str, Any]
    seconds: float
    waived: str


class Counted(_Event):
    """What a gateway has counted since its start: backend -> kind -> number.

    Attributes:
        batch_ends: whether it is the count after a batch; else it is the one before it.
        region: the region of the batch, if the fleet has workers.
    """

    event: Literal["counted"] = "counted"
    gateway: str
    batch_ends: bool
    backends: dict[str, dict[str, int]]
    region: str = ""


class Outcome(_Event):
    """What has become of a host, as :class:`vllm_fleet.operate.rollout.hosts.Progress` has it."""

    event: Literal["outcome"] = "outcome"
    host: str
    state: str
    why: str
    gate: str
    log: list[str]
    seconds: dict[str, float]
    changed: bool
    before: dict[str, Any]
    results: list[dict[str, Any]]
    speed: dict[str, Any] | None
    #: A record of an earlier release has no such key.
    cached: bool = False


class Kept(_Event):
    """A canary was accepted, and what it has measured is kept. A worker tells it, and no record has it.

    Attributes:
        folder: the folder of the reference, below those of the fleet.
        file: its file there.
        text: its contents.
    """

    event: Literal["kept"] = "kept"
    host: str
    folder: str
    file: str
    text: str


class Left(_Event):
    """Hosts that a run was asked to leave as they are: it ended before their batch."""

    event: Literal["left"] = "left"
    hosts: list[str]


class Ended(_Event):
    """A run has ended: all was accepted, a host was refused, it was asked to end, or it could not go on."""

    event: Literal["ended"] = "ended"
    state: End
    why: str = ""


Event = (
    Run
    | BatchBegun
    | ReleaseChange
    | PhaseBegun
    | PhaseEnded
    | InstanceStarted
    | GateJudged
    | Counted
    | Outcome
    | Kept
    | Left
    | Ended
)
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


@dataclass
class Record:
    """Writes the events of a run.

    Attributes:
        files: host -> the record of its fleet. A host without one has none.
        fault: why the record is incomplete; empty if it is not. A rollout under way goes on without it.
        on_line: called with each line that is written.
    """

    files: Mapping[str, Path] = field(default_factory=dict[str, Path])
    fault: str = ""
    on_line: Callable[[str], None] | None = None

    def write(self, event: str, **values: Any) -> None:
        """Appends an event to the record of its host; without a host, to that of each fleet.

        Args:
            event: the name of the event.
            values: what its record has besides.
        """
        host = values.get("host")
        files = [self.files.get(host)] if host is not None else list(dict.fromkeys(self.files.values()))
        for file in filter(None, files):
            given = {"at": _now(), "event": event, **values}
            if "hosts" in values:
                given["hosts"] = [name for name in values["hosts"] if self.files.get(name) == file]
            line = _EVENT.validate_python(given).model_dump_json()
            self._append(file, line)
            if self.on_line:
                self.on_line(line)

    def tell(self, event: str, **values: Any) -> None:
        """Calls ``on_line`` with an event that no record has.

        Args:
            event: the name of the event.
            values: what it has besides.
        """
        if self.on_line:
            self.on_line(_EVENT.validate_python({"at": _now(), "event": event, **values}).model_dump_json())

    def repeat_run(self) -> None:
        """Calls ``on_line`` with the line that each file begins with, which another process may have written."""
        for file in dict.fromkeys(self.files.values()):
            with file.open(encoding="utf-8") as opened:
                line = opened.readline()
            if self.on_line:
                self.on_line(line.rstrip("\n"))

    def write_again(self, event: Event, **values: Any) -> None:
        """Writes an event that another record has.

        Args:
            event: the event; its time becomes that of this machine.
            values: what it has here in place of its own.
        """
        given = event.model_dump(exclude={"at", "event"})
        self.write(event.event, **{**given, **values})

    def _append(self, file: Path, line: str) -> None:
        data = f"{line}\n".encode()
        try:
            handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                if os.write(handle, data) < len(data):
                    self.fault = f"{file} cannot be written: its disk is full"
            finally:
                os.close(handle)
        except OSError as fault:
            self.fault = f"{file} cannot be written: {fault.strerror}"

    @contextmanager
    def phase(self, name: str, *hosts: str, instance: str = "", gates: Sequence[str] = ()) -> Iterator[None]:
        """Writes that hosts are at a step, and that it is over.

        Args:
            name: the step.
            hosts: the hosts.
            instance: the instance that it is about; empty: all of the host.
            gates: those that are asked in it.
        """
        begun = time.monotonic()
        for host in hosts:
            self.write("begin", host=host, phase=name, instance=instance, gates=list(gates))
        failed = True
        try:
            yield
            failed = False
        finally:
            seconds = round(time.monotonic() - begun, 3)
            for host in hosts:
                self.write("end", host=host, phase=name, instance=instance, seconds=seconds, failed=failed)

    def write_outcomes(self, found: Mapping[str, Progress]) -> None:
        """Writes what has become of hosts."""
        for host, progress in found.items():
            values = {key: value for key, value in progress.record().items() if key != "logprobs"}
            self.write("outcome", host=host, **values)


def folder(fleet: str) -> Path:
    """Where the records of a fleet are."""
    return paths.run_dir(fleet) / "rollouts"


def open_record(
    fleets: Mapping[str, Sequence[str]], pid: int, kind: Kind = "rollout", *, check: bool = False
) -> Record:
    """The record of a run, which its first process begins and the others continue.

    Args:
        fleets: fleet -> all hosts of it that the run is about.
        pid: the process that runs as long as the run does.
        kind: what the run does.
        check: whether it only says what it would change.

    Raises:
        FleetError: the file cannot be written.
    """
    files: dict[str, Path] = {}
    for fleet, hosts in fleets.items():
        file = find_record(fleet, pid)
        try:
            if file:
                _cut_half_line(file)
            else:
                owner = run_owner.name_run(pid)
                run = Run(at=_now(), owner=owner, fleet=fleet, kind=kind, check=check, hosts=list(hosts))
                file = _begin(run, pid)
        except OSError as fault:
            place = paths.display(folder(fleet))
            raise FleetError(f"cannot keep the record of the rollout: {fault.strerror}", paths.ALLOW, place) from None
        files |= dict.fromkeys(hosts, file)
    return Record(files)


def find_record(fleet: str, pid: int) -> Path | None:
    """The record of the run of a process; None before it has one."""
    owner = run_owner.name_run(pid)
    for file in sorted(folder(fleet).glob(f"*-{pid}{SUFFIX}"), reverse=True):
        with file.open(encoding="utf-8", errors="replace") as opened:
            first = opened.readline()
        if json.dumps(owner) in first:
            return file
    return None


def _now() -> float:
    return round(time.time(), 3)


def _begin(run: Run, pid: int) -> Path:
    """A new file, which has its first line from the beginning; of the old ones the newest stay."""
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{pid}"
    file = folder(run.fleet) / f"{name}{SUFFIX}"
    write_atomically(file, f"{run.model_dump_json()}\n", 0o600)
    for old in list_records(run.fleet)[KEPT:]:
        old.unlink(missing_ok=True)
        old.with_suffix(".html").unlink(missing_ok=True)
    return file


def _cut_half_line(file: Path) -> None:
    """A full disk may have left half a line, to which the next one would be added."""
    data = file.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(file, whole)


def list_records(fleet: str) -> list[Path]:
    """The records of a fleet, the newest first."""
    return sorted(folder(fleet).glob(f"*{SUFFIX}"), reverse=True)


def read_record(file: Path) -> list[Event]:
    """The events of a record. Half a line at its end is left out.

    Args:
        file: the record.

    Raises:
        FleetError: it cannot be read, or it is not a record.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise _wrong(file, None) from None
    events = list(read_lines(text.split("\n")[:-1], file))
    if not events or not isinstance(events[0], Run):
        raise _wrong(file, 1)
    return events


def read_lines(lines: Iterable[str], file: Path, first: int = 1) -> Iterator[Event]:
    """The events of lines.

    Args:
        lines: whole lines.
        file: where they are from.
        first: the number of the first one.

    Raises:
        FleetError: a line is no event.
    """
    for number, line in enumerate(lines, start=first):
        try:
            yield _EVENT.validate_json(line)
        except ValidationError:
            raise _wrong(file, number) from None


def _wrong(file: Path, line: int | None) -> FleetError:
    return FleetError(
        "is no record of a rollout", "remove the file: later runs do not need it", paths.display(file), line
    )


def mask_secrets(lines: Sequence[str]) -> list[str]:
    """The lines of a diff; a value that is a secret by its name becomes dots."""

    def masked(line: str) -> str:
        found = _SETS.fullmatch(line)
        return f"{found[1]}…" if found and is_secret_name(found[2]) else line

    return list(map(masked, lines))


def find_left_hosts(fleet: str, pid: int) -> frozenset[str]:
    """The hosts that the run of a process was asked to leave as they are."""
    file = find_record(fleet, pid)
    events = read_record(file) if file else []
    return frozenset(name for event in events if isinstance(event, Left) for name in event.hosts)


def find_unfinished(fleet: str) -> tuple[Path, list[Event]] | None:
    """The newest record of a fleet, if its run did not come to its end; None: it did, or it still works."""
    for file in list_records(fleet):
        events = read_record(file)
        run = events[0]
        if not isinstance(run, Run) or run.check or run.kind != "rollout":
            continue
        ended = [event for event in events if isinstance(event, Ended)]
        if (ended and ended[-1].state in ("done", "refused")) or (not ended and not run_owner.is_gone(run.owner)):
            return None
        return file, events
    return None
