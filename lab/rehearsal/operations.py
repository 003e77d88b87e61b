"""The operations of an emulated cloud on a resource: create, read, update, delete. Property bags are plain data."""

from __future__ import annotations

import secrets
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lab.rehearsal import machines, read_back, rules, sdk, wire
from lab.rehearsal.cloud import Cloud, Fault, Record, RefusedError
from lab.rehearsal.difference import Difference, differences
from lab.rehearsal.machines import Lab
from lab.rehearsal.table import Kind, Table, load

Bag = dict[str, Any]
#: Seconds that an error on demand waits for other requests.
LONGEST_WAIT = 120.0


class BegunError(Exception):
    """A resource exists and is not ready: the engine keeps it, and the next update continues."""

    def __init__(self, record: Record, reason: str) -> None:
        super().__init__(reason)
        self.record = record


class Operations:
    """One cloud's operations on the resources of its table.

    Attributes:
        config: region, project and similar keys, as the program's provider gives them.
        stopped: set when the engine cancels running operations.
    """

    def __init__(self, plugin: str, cloud: Cloud, lab: Lab | None) -> None:
        self.plugin = plugin
        self.cloud, self.lab = cloud, lab
        self.config: Mapping[str, Any] = {}
        self.stopped = threading.Event()

    @property
    def table(self) -> Table:
        """The table of the cloud; the first access imports its SDK."""
        return load(self.plugin)

    def kind(self, token: str) -> Kind:
        """The row of a type.

        Raises:
            RefusedError: the table has none.
        """
        if token not in self.table.kinds:
            raise RefusedError(f"this rehearsal of {self.table.cloud} knows no {token}: add it to its table")
        return self.table.kinds[token]

    def check(self, token: str, inputs: Bag) -> list[tuple[str, str]]:
        """The errors in the form of inputs, as the plugin reports them before a request to the cloud."""
        given = {name: value for name, value in inputs.items() if not name.startswith("__")}
        return list(sdk.check_inputs(self.kind(token).arguments, given, self.table.open_lists))

    def differences(self, token: str, state: Bag, inputs: Bag, news: Bag) -> list[Difference]:
        """What the provider calls a difference: between a resource as it was read last, and the inputs of now."""
        kind = self.kind(token)
        found = differences(kind.schema, state, inputs, news)
        return [
            replace(item, replaces=item.replaces or rules.less(kind.changes.replaced_by_less, item.path, state, news))
            for item in found
        ]

    def takes_its_name(self, token: str) -> bool:
        """Whether the name of a resource is free only once the old one is gone."""
        kind = self.kind(token)
        return "{hex" not in kind.id or bool(kind.unique)

    def preview(self, token: str, inputs: Bag) -> Bag:
        """The outputs of a resource in a preview; values that only the cloud knows are unknown."""
        kind = self.kind(token)
        outputs: Bag = wire.copy(inputs)
        machine = kind.machine
        paths = [*kind.computed, *((*machine.public, *machine.private) if machine else ())]
        for path in [*paths, *([kind.address["as"]] if kind.address else [])]:
            if wire.value(inputs, path) is None:
                wire.put(outputs, path, wire.UNKNOWN)
        return outputs

    def create(self, token: str, name: str, inputs: Bag) -> Record:
        """Creates a resource.

        Raises:
            RefusedError: nothing was created.
            BegunError: it exists and is not ready.
        """
        kind = self.kind(token)
        with self.cloud.lock:
            zone = machines.zone_of(self.table, kind, self.cloud, inputs)
            shape = str(wire.value(inputs, kind.machine.shape)) if kind.machine else ""
            fault = self.cloud.fault("create", token, name, zone)
            self.cloud.requested.add(name)
        if fault:
            self._wait_for(fault.after)
        with self.cloud.lock:
            self._refuse(kind, inputs, shape, zone, fault)
            record = self._record(kind, name, inputs, shape, zone)
            self.cloud.put(record)
            self.cloud.log.append(f"create {token} {name}")
        if fault and self._wait(fault.seconds):
            raise BegunError(record, "the creation was cancelled while it was under way")
        if kind.machine and self.lab:
            self._boot(kind, record)
        if fault and fault.says and fault.leaves == "begun":
            raise BegunError(record, fault.says)
        if fault and fault.says:
            raise RefusedError(fault.says)
        return record

    def read(self, token: str, id_: str) -> Record | None:
        """The current state of a resource; None where it does not exist."""
        record = self.cloud.get(token, id_)
        if record and self.kind(token).machine and not machines.alive(record, self.lab):
            machines.end(record, self.lab)
            self.cloud.drop(record)
            return None
        if record:
            with self.cloud.lock:
                if read_back.fill(self.table, self.kind(token), self.cloud, record):
                    self.cloud.put(record)
        return record

    def update(self, token: str, id_: str, olds: Bag, inputs: Bag) -> Record:
        """Updates a resource in place.

        Args:
            token: its type.
            id_: its id.
            olds: its inputs before.
            inputs: its inputs now.

        Raises:
            RefusedError: it does not exist, or the cloud refuses the change.
        """
        kind = self.kind(token)
        with self.cloud.lock:
            record = self.cloud.get(token, id_)
            if record is None:
                raise RefusedError(self.table.errors["missing"].format(kind=token.rpartition(":")[2], id=id_))
            fault = self.cloud.fault("update", token, record.name, record.zone)
            if fault and fault.says:
                raise RefusedError(fault.says)
            rules.refuse(self.table, kind, self.cloud, inputs, id_)
            rules.refuse_change(kind, record, olds, inputs)
            if rules.stops(kind, olds, inputs):
                self.cloud.log.append(f"stop {token} {record.name}")
            known = {key: value for key, value in record.outputs.items() if key not in record.inputs}
            outputs = {**wire.copy(inputs), **known}
            machine = kind.machine
            for path in (*machine.public, *machine.private) if machine else ():
                wire.put(outputs, path, wire.value(record.outputs, path))
            record.inputs, record.outputs = inputs, outputs
            record.shape = str(wire.value(inputs, machine.shape)) if machine else ""
            read_back.fill(self.table, kind, self.cloud, record)
            self.cloud.put(record)
            self.cloud.log.append(f"update {token} {record.name}")
        return record

    def delete(self, token: str, id_: str) -> None:
        """Deletes a resource; does nothing where it does not exist.

        Raises:
            RefusedError: another resource uses it.
        """
        record = self.cloud.get(token, id_)
        if record is None:
            return
        fault = self.cloud.fault("delete", token, record.name, record.zone)
        if fault and fault.says:
            raise RefusedError(fault.says)
        with self.cloud.lock:
            rules.refuse_deletion(self.table, self.cloud, record)
        machines.end(record, self.lab)
        with self.cloud.lock:
            self.cloud.drop(record)
            self.cloud.log.append(f"delete {token} {record.name}")

    def _refuse(self, kind: Kind, inputs: Bag, shape: str, zone: str, fault: Fault | None) -> None:
        if kind.machine and shape not in self.table.shapes:
            raise RefusedError(self.table.errors["shape"].format(shape=shape))
        rules.refuse(self.table, kind, self.cloud, inputs)
        if fault and fault.says and fault.leaves == "nothing":
            self.cloud.log.append(f"refuse {kind.token}")
            reason = self.table.errors["capacity"] if fault.says == "capacity" else fault.says
            raise RefusedError(reason.format(shape=shape, zone=zone))

    def _record(self, kind: Kind, name: str, inputs: Bag, shape: str, zone: str) -> Record:
        words = {
            "region": "",
            "project": "",
            "subscription": "00000000-0000-0000-0000-000000000000",
            "hex": secrets.token_hex(16),
            "hex17": secrets.token_hex(9)[:17],
            "uuid": str(uuid.uuid4()),
            "number": 4_000_000 + self.cloud.number(),
            "zone": zone,
            **{key: value for key, value in self.config.items() if isinstance(value, str)},
            **{key: value for key, value in inputs.items() if isinstance(value, (str, int))},
        }
        words["group"] = "/subscriptions/{subscription}/resourceGroups/{resourceGroupName}".format(
            **{"resourceGroupName": "", **words}
        )
        id_ = kind.id.format(**words)
        if self.cloud.get(kind.token, id_):
            raise RefusedError(self.table.errors["exists"].format(what=id_))
        outputs = wire.copy(inputs)
        for output, template in kind.computed.items():
            outputs.setdefault(output, template.format(**{**words, "id": id_}))
        record = Record(id_, kind.token, name, inputs, outputs, shape=shape, zone=zone)
        machines.place(kind, self.cloud, record, one_address=self.lab is not None)
        read_back.fill(self.table, kind, self.cloud, record)
        if kind.account:
            self.cloud.account.have.setdefault(kind.account, []).append(id_)
        return record

    def _boot(self, kind: Kind, record: Record) -> None:
        if self.lab is None:
            return
        try:
            machines.boot(self.table, kind, record, self.lab)
        except Exception:
            self.cloud.drop(record)
            raise
        self.cloud.put(record)

    def _wait_for(self, names: Sequence[str]) -> None:
        """Waits until other resources were requested.

        Raises:
            RefusedError: they were not requested in time.
        """
        until = time.monotonic() + LONGEST_WAIT
        while missing := set(names) - self.cloud.requested:
            if time.monotonic() > until or self.stopped.wait(0.05):
                raise RefusedError(f"never asked for: {', '.join(sorted(missing))}")

    def _wait(self, seconds: float) -> bool:
        """Waits; returns whether it was cancelled meanwhile."""
        return self.stopped.wait(seconds) if seconds else False
