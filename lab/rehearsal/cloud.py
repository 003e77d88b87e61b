"""The rehearsed cloud itself: what it has, kept in one file, and what goes wrong in it on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lab.rehearsal import wire
from vllm_fleet.base.atomic_files import write_atomically


class RefusedError(Exception):
    """What the cloud answers to what it does not do."""


@dataclass
class Record:
    """One thing in the cloud.

    Attributes:
        type: its type on the wire.
        name: the name that the program has for it.
        host: its host in the lab; None for all that boots nothing.
    """

    id: str
    type: str
    name: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    address: str = ""
    private: str = ""
    shape: str = ""
    zone: str = ""
    host: str | None = None

    def output(self, name: str) -> Any:
        """An output, or its id."""
        return self.id if name == "id" else wire.value(self.outputs, name)


@dataclass
class Fault:
    """Something that goes wrong; patterns as in a shell.

    Attributes:
        operation: ``create``, ``read``, ``update``, ``delete``.
        says: the error; ``capacity`` for the cloud's own words of it.
        times: how often; None: always.
        seconds: how long the operation takes before it.
        leaves: ``nothing``; ``begun``: the thing is there and known, yet not ready; ``lost``: it is there, and the
            answer never came.
        after: names; it happens once all of them have been asked for, so that a busy machine changes no test.
    """

    operation: str
    type: str = "*"
    name: str = "*"
    zone: str = "*"
    says: str = ""
    times: int | None = None
    seconds: float = 0.0
    leaves: str = "nothing"
    after: tuple[str, ...] = ()

    def hits(self, operation: str, kind: str, name: str, zone: str) -> bool:
        """Whether it is about this operation."""
        pairs = ((self.operation, operation), (self.type, kind), (self.name, name), (self.zone, zone))
        return self.times != 0 and all(fnmatchcase(each, wanted) for wanted, each in pairs)


@dataclass
class Account:
    """What an account has that no stack has made.

    Attributes:
        have: kind -> ids, such as ``reservations``.
        versions: an image's look-up -> how many newer ones there have been.
        offerings: the capacity blocks that AWS would sell, the first one first: id and price.
        regions: a size of DigitalOcean -> where it is offered; all others are offered everywhere.
    """

    have: dict[str, list[str]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    offerings: list[tuple[str, str]] = field(default_factory=list)
    regions: dict[str, list[str]] = field(default_factory=dict)


class Cloud:
    """Records and account, the same for all providers of a rehearsal.

    Attributes:
        lock: held while records are looked at or changed.
        faults: what goes wrong, the first that fits.
        log: every call that changed something or was refused, as ``operation type name``.
        asked: the names whose creation has begun since the records were taken up.
    """

    def __init__(self, file: Path, addresses: tuple[str, str] = ("198.18.0.", "10.60.0.")) -> None:
        self.lock = threading.RLock()
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.asked: set[str] = set()
        self._file = file
        self._prefixes = addresses
        self._records: dict[str, Record] = {}
        self.account = Account()
        self._counter = 0
        self.load()

    @property
    def records(self) -> list[Record]:
        """Everything, in the order in which it was made."""
        with self.lock:
            return list(self._records.values())

    def of(self, kind: str) -> list[Record]:
        """What there is of a type, by the end of its name such as ``:Instance``."""
        return [each for each in self.records if each.type.endswith(kind)]

    def named(self, kind: str, name: str) -> Record:
        """The one thing of a type and a name of the program.

        Raises:
            LookupError: there is none, or more than one.
        """
        found = [each for each in self.of(kind) if each.name == name]
        if len(found) != 1:
            raise LookupError(f"there are {len(found)} {kind} {name}")
        return found[0]

    def get(self, kind: str, id_: str) -> Record | None:
        """A thing by its id."""
        with self.lock:
            return self._records.get(f"{kind}|{id_}")

    def find(self, kind: str, output: str, value: Any) -> Record | None:
        """A thing by one of its outputs."""
        if output == "id":
            return self.get(kind, str(value))
        return next((each for each in self.of(kind) if each.type == kind and each.output(output) == value), None)

    def first(self, targets: Sequence[tuple[str, str]], value: Any) -> Record | None:
        """The thing that a reference is to, of those that it may be to."""
        found = (self.find(kind, output, value) for kind, output in targets)
        return next((each for each in found if each), None)

    def put(self, record: Record) -> None:
        """Keeps a thing."""
        with self.lock:
            self._records[f"{record.type}|{record.id}"] = record
            self._write()

    def drop(self, record: Record) -> None:
        """Forgets a thing."""
        with self.lock:
            self._records.pop(f"{record.type}|{record.id}", None)
            self._write()

    def number(self) -> int:
        """A number that this cloud has not given yet."""
        with self.lock:
            self._counter += 1
            self._write()
            return self._counter

    def new_address(self, public: bool) -> str:
        """An address that nothing has."""
        prefix = self._prefixes[0 if public else 1]
        with self.lock:
            taken = {address for each in self._records.values() for address in (each.address, each.private)}
            return next(address for address in _addresses(prefix) if address not in taken)

    def fault(self, operation: str, kind: str, name: str, zone: str) -> Fault | None:
        """What goes wrong with an operation, counted."""
        with self.lock:
            found = next((each for each in self.faults if each.hits(operation, kind, name, zone)), None)
            if found and found.times is not None:
                found.times -= 1
        return found

    def change(self, record: Record, path: str, value: Any) -> None:
        """Drift: somebody changes a thing behind the stack's back."""
        with self.lock:
            wire.put(record.inputs, path, value)
            wire.put(record.outputs, path, value)
            self._write()

    def save(self) -> None:
        """Writes what was changed in the account."""
        with self.lock:
            self._write()

    def _write(self) -> None:
        data = {
            "counter": self._counter,
            "account": asdict(self.account),
            "records": [asdict(each) for each in self._records.values()],
        }
        write_atomically(self._file, json.dumps(data, indent=1) + "\n", 0o600)

    def load(self) -> None:
        """Takes up what the file has; faults, log and what was asked begin anew."""
        self.faults, self.log, self.asked, self._records = [], [], set(), {}
        if not self._file.is_file():
            return
        data = json.loads(self._file.read_text(encoding="utf-8"))
        self._counter = data["counter"]
        self.account = Account(**data["account"])
        for row in data["records"]:
            record = Record(**row)
            self._records[f"{record.type}|{record.id}"] = record


def _addresses(prefix: str) -> Iterator[str]:
    for number in range(11, 251):
        yield f"{prefix}{number}"
