"""The emulated cloud: its resources in one file, and errors on demand."""

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

#: The subscription of Azure where a rehearsal names none.
NO_SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"


class RefusedError(Exception):
    """The cloud refuses a request; the message is its answer."""


@dataclass
class Record:
    """One resource in the cloud.

    Attributes:
        type: its type on the wire.
        name: its name in the program.
        host: its host in the lab; None for resources that boot none.
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
    """An error on demand; patterns as in a shell.

    Attributes:
        operation: ``create``, ``read``, ``update``, ``delete``.
        says: the error; ``capacity`` for the cloud's own message.
        times: how often it happens; None: always.
        seconds: how long the operation takes before the error.
        leaves: ``nothing``; ``begun``: the resource exists and is known, and is not ready; ``lost``: it exists, and the
            answer was lost.
        after: names; the error waits until all of them were requested, so that a busy machine changes no test.
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
        """Whether the error is for this operation."""
        pairs = ((self.operation, operation), (self.type, kind), (self.name, name), (self.zone, zone))
        return self.times != 0 and all(fnmatchcase(actual, wanted) for wanted, actual in pairs)


@dataclass
class Account:
    """What an account has without any stack.

    Attributes:
        have: kind -> ids, such as ``reservations``.
        versions: an image's lookup -> the number of newer images since.
        offerings: the capacity blocks that AWS offers, in order: id and price.
        regions: a size of DigitalOcean -> the regions that offer it; all regions offer other sizes.
        ids: cloud -> the id of the account that the credentials are of; of others, any that a program wants.
    """

    have: dict[str, list[str]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    offerings: list[tuple[str, str]] = field(default_factory=list)
    regions: dict[str, list[str]] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)


class Cloud:
    """Records and account, shared by all providers of a rehearsal.

    Attributes:
        lock: held while records are read or changed.
        faults: the errors on demand; the first that fits happens.
        log: every call that changed something or was refused, as ``operation type name``.
        asked: the names whose creation was requested since the records were loaded.
    """

    def __init__(self, file: Path, addresses: tuple[str, str] = ("198.18.0.", "10.60.0.")) -> None:
        self.lock = threading.RLock()
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.requested: set[str] = set()
        self._file = file
        self._prefixes = addresses
        self._records: dict[str, Record] = {}
        self.account = Account()
        self._counter = 0
        self.load()

    @property
    def records(self) -> list[Record]:
        """All records, in the order of their creation."""
        with self.lock:
            return list(self._records.values())

    def records_of(self, kind: str) -> list[Record]:
        """The records of a type, by the end of its name such as ``:Instance``."""
        return [record for record in self.records if record.type.endswith(kind)]

    def named(self, kind: str, name: str) -> Record:
        """The only record of a type and a name of the program.

        Raises:
            LookupError: no record matches, or several do.
        """
        records = [record for record in self.records_of(kind) if record.name == name]
        if len(records) != 1:
            raise LookupError(f"there are {len(records)} {kind} {name}")
        return records[0]

    def get(self, kind: str, id_: str) -> Record | None:
        """The record with an id; None if it is unknown."""
        with self.lock:
            return self._records.get(f"{kind}|{id_}")

    def find(self, kind: str, output: str, value: Any) -> Record | None:
        """The first record of a type with a value of an output; None without a match."""
        if output == "id":
            return self.get(kind, str(value))
        return next(
            (record for record in self.records_of(kind) if record.type == kind and record.output(output) == value), None
        )

    def first(self, targets: Sequence[tuple[str, str]], value: Any) -> Record | None:
        """The record that a reference points to, among its possible types."""
        candidates = (self.find(kind, output, value) for kind, output in targets)
        return next((candidate for candidate in candidates if candidate), None)

    def put(self, record: Record) -> None:
        """Saves a record."""
        with self.lock:
            self._records[f"{record.type}|{record.id}"] = record
            self._write()

    def drop(self, record: Record) -> None:
        """Removes a record."""
        with self.lock:
            self._records.pop(f"{record.type}|{record.id}", None)
            self._write()

    def number(self) -> int:
        """A number that this cloud has not used yet."""
        with self.lock:
            self._counter += 1
            self._write()
            return self._counter

    def new_address(self, public: bool) -> str:
        """An address that is not in use."""
        prefix = self._prefixes[0 if public else 1]
        with self.lock:
            taken = {address for record in self._records.values() for address in (record.address, record.private)}
            return next(address for address in _addresses(prefix) if address not in taken)

    def fault(self, operation: str, kind: str, name: str, zone: str) -> Fault | None:
        """The error for an operation, if any; counts it."""
        with self.lock:
            hit = next((fault for fault in self.faults if fault.hits(operation, kind, name, zone)), None)
            if hit and hit.times is not None:
                hit.times -= 1
        return hit

    def change(self, record: Record, path: str, value: Any) -> None:
        """Drift: changes a record without the stack."""
        with self.lock:
            wire.put(record.inputs, path, value)
            wire.put(record.outputs, path, value)
            self._write()

    def save(self) -> None:
        """Writes changes of the account."""
        with self.lock:
            self._write()

    def _write(self) -> None:
        data = {
            "counter": self._counter,
            "account": asdict(self.account),
            "records": [asdict(record) for record in self._records.values()],
        }
        write_atomically(self._file, json.dumps(data, indent=1) + "\n", 0o600)

    def load(self) -> None:
        """Loads the file; clears faults, log and requests."""
        self.faults, self.log, self.requested, self._records = [], [], set(), {}
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
