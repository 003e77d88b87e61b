"""The emulated cloud: its resources, kept in one file, and errors on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from lab.rehearsal import wire
from lab.rehearsal.addresses import PUBLIC, Addresses
from lab.rehearsal.index import Index
from lab.rehearsal.store import Store

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
        address: its public address, or the only one.
        private: its private address.
        subnet: the id of the network that the private address is in; empty where hosts have one address.
        host: its host in the lab; None for resources that boot none.
    """

    id: str
    type: str
    name: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    address: str = ""
    private: str = ""
    subnet: str = ""
    shape: str = ""
    zone: str = ""
    host: str | None = None

    @property
    def key(self) -> str:
        """What no other record of the cloud has."""
        return f"{self.type}|{self.id}"

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """The addresses that it has, each with its network."""
        pairs = (("", self.address), (self.subnet, self.private))
        return [(network, address) for network, address in pairs if address]

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
        block: where and when the offered blocks are, as words of the tables.
        regions: a size of DigitalOcean -> the regions that offer it; all regions offer other sizes.
        places: cloud -> region -> its zones; of a cloud that is not here, those of ``recipes/clouds``.
        ids: cloud -> the id of the account that the credentials are of; of others, any that a program wants.
    """

    have: dict[str, list[str]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    offerings: list[tuple[str, str]] = field(default_factory=list)
    block: dict[str, str] = field(
        default_factory=lambda: {
            "block_zone": "us-east-1a",
            "block_starts": "2026-01-01T11:30:00Z",
            "block_ends": "2099-01-01T11:30:00Z",
        }
    )
    regions: dict[str, list[str]] = field(default_factory=dict)
    places: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)


class Cloud:
    """Records and account, shared by all providers of a rehearsal.

    Whoever changes a record puts it again: that saves it, and keeps the look-ups right.

    Attributes:
        lock: held while records are read or changed.
        faults: the errors on demand; the first that fits happens.
        log: every call that changed something or was refused, as ``operation type name``.
        asked: the names whose creation was requested since the records were loaded.
    """

    def __init__(self, file: Path, public: IPv4Network = PUBLIC) -> None:
        self.lock = threading.RLock()
        self._file = file
        self._public = public
        self._store = Store(file)
        self.account = Account()
        self._saved_account = ""
        self._counter = 0
        self.load()

    @property
    def records(self) -> list[Record]:
        """All records, in the order of their creation."""
        with self.lock:
            return list(self._records.values())

    def records_of(self, kind: str) -> list[Record]:
        """The records of a type, by its name or the end of its name such as ``:Instance``."""
        with self.lock:
            exactly = self._types.get(kind)
        return exactly or [record for record in self.records if record.type.endswith(kind)]

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

        def read(record: Record) -> Iterable[Hashable]:
            return [repr(record.output(output))] if record.type == kind else []

        return next(iter(self._among(("output", kind, output), read, repr(value))), None)

    def first(self, targets: Sequence[tuple[str, str]], value: Any) -> Record | None:
        """The record that a reference points to, among its possible types."""
        candidates = (self.find(kind, output, value) for kind, output in targets)
        return next((candidate for candidate in candidates if candidate), None)

    def with_inputs(self, kind: str, paths: tuple[str, ...], values: Sequence[Any]) -> list[Record]:
        """The records of a type whose inputs at some paths have these values."""

        def read(record: Record) -> Iterable[Hashable]:
            return [repr([wire.value(record.inputs, path) for path in paths])] if record.type == kind else []

        return self._among(("inputs", kind, paths), read, repr(list(values)))

    def mentioning(self, values: Iterable[str | int]) -> list[Record]:
        """The records with one of these values somewhere in their inputs."""
        found: dict[str, Record] = {}
        for value in values:
            found |= {record.key: record for record in self._among("mentioned", _mentioned, value)}
        return list(found.values())

    def _among(self, name: Hashable, read: Callable[[Record], Iterable[Hashable]], value: Hashable) -> list[Record]:
        """The records for which a function reads a value; the first call for a name makes its index."""
        with self.lock:
            if name not in self._indexes:
                self._indexes[name] = Index(read)
                for key, record in self._records.items():
                    self._indexes[name].put(key, record)
            return self._indexes[name].get(value)

    def put(self, record: Record) -> None:
        """Saves a record."""
        with self.lock:
            self._enter(record)
            self._store.put(record.key, json.dumps(vars(record)))
            self.save()

    def drop(self, record: Record) -> None:
        """Removes a record."""
        with self.lock:
            key = record.key
            if self._records.pop(key, None):
                self._addresses.give_back(self._held.pop(key))
            for index in (self._types, *self._indexes.values()):
                index.drop(key)
            self._store.drop(key)
            self.save()

    def number(self) -> int:
        """A number that this cloud has not used yet."""
        with self.lock:
            self._counter += 1
            self._store.note("counter", str(self._counter))
            return self._counter

    def new_address(self, network: str = "", block: IPv4Network | None = None) -> str:
        """An address that is not in use.

        Args:
            network: the id of the network that it is in; empty for public addresses.
            block: the range of that network; None for public addresses.

        Raises:
            RefusedError: all addresses of the range are in use.
        """
        with self.lock:
            address = self._addresses.free(network, block or self._public)
        if address is None:
            raise RefusedError(f"{network or 'the cloud'} has no free address in {block or self._public}")
        return address

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
            self.put(record)

    def save(self) -> None:
        """Saves the account, if it changed."""
        with self.lock:
            account = json.dumps(asdict(self.account))
            if account != self._saved_account:
                self._store.note("account", account)
                self._saved_account = account

    def load(self) -> None:
        """Loads the file; clears faults, log and requests."""
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.requested: set[str] = set()
        self._records: dict[str, Record] = {}
        self._types: Index[Record] = Index(lambda record: (record.type,))
        self._indexes: dict[Hashable, Index[Record]] = {}
        self._addresses = Addresses()
        #: Key of a record -> the addresses that it has taken.
        self._held: dict[str, list[tuple[str, str]]] = {}
        # The file may be another one since.
        self._store.close()
        self._store = Store(self._file)
        notes = self._store.notes()
        self._counter = int(notes.get("counter", self._counter))
        self._saved_account = notes.get("account", "")
        if self._saved_account:
            self.account = Account(**json.loads(self._saved_account))
        for text in self._store.records():
            self._enter(Record(**json.loads(text)))

    def _enter(self, record: Record) -> None:
        key, held = record.key, record.addresses
        self._records[key] = record
        if held != self._held.get(key):
            self._addresses.give_back(self._held.get(key, []))
            self._addresses.take(held)
            self._held[key] = held
        for index in (self._types, *self._indexes.values()):
            index.put(key, record)


def _mentioned(record: Record) -> Iterator[str | int]:
    """The texts and numbers in the inputs of a record."""
    waiting: list[Any] = [record.inputs]
    while waiting:
        value = waiting.pop()
        if isinstance(value, (dict, list)):
            waiting.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, (str, int)) and not isinstance(value, bool):
            yield value
