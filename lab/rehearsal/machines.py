"""The hosts of a rehearsed cloud: records alone, or hosts of the lab with the tools of their class."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import cleanup, gpu, host, network, state
from lab.rehearsal import cloudinit, wire
from lab.rehearsal.cloud import Cloud, Record, RefusedError
from lab.rehearsal.table import Kind, Table
from lab.spec import HostSpec, NetworkSpec
from lab.tree import tree_digest
from vllm_fleet.catalogue.catalogue import load as load_catalog

_DISK_GIB = 1


@dataclass(frozen=True)
class Lab:
    """Where hosts are booted.

    Attributes:
        bridge: of this machine.
        subnet: as ``10.78.0``, without its last number.
        owner: the folder that the lab belongs to.
    """

    bridge: str
    subnet: str
    owner: Path

    @property
    def prefixes(self) -> tuple[str, str]:
        """How public and private addresses begin: a host of the lab has one address for both."""
        return f"{self.subnet}.", f"{self.subnet}."

    def open(self) -> None:
        """Makes the network, after whatever a killed rehearsal has left of it."""
        self.close()
        network.create(NetworkSpec(self.bridge, f"{self.subnet}.0/24", str(self.owner), _DISK_GIB * 5))

    def close(self) -> None:
        """Removes every host and the network; nothing happens where there is nothing."""
        if state.lab_dir(self.bridge).is_dir():
            cleanup.down(self.bridge)


def zone_of(table: Table, kind: Kind, cloud: Cloud, inputs: Mapping[str, Any]) -> str:
    """The zone of a resource: a host's own, or what the inputs say of one."""
    ways = kind.machine.zone if kind.machine else ("availabilityZone", "zone", "zones.0")
    for way in ways:
        found: Any = inputs
        here: Kind | None = kind
        for path in way.split(">"):
            value = wire.value(found, path) if here else None
            targets = here.refers.get(_general(path), ()) if here else ()
            record = cloud.first(targets, value) if value else None
            found, here = (record.inputs, table.kinds.get(record.type)) if record else ({}, None)
        if value is not None and not wire.is_unknown(value):
            return str(value)
    return ""


def _general(path: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def place(kind: Kind, cloud: Cloud, record: Record, one_address: bool) -> None:
    """Gives a record its addresses: those of what it refers to, or new ones.

    Args:
        kind: the record's type.
        cloud: the cloud.
        record: the record, whose outputs get what can be read of the addresses.
        one_address: whether a host has one address for all.
    """
    if kind.machine:
        lent = _lent(kind, cloud, record)
        record.address = lent.address if lent else cloud.new_address(public=True)
        record.private = record.address if one_address else (lent and lent.private) or cloud.new_address(public=False)
        for path in kind.machine.public:
            wire.put(record.outputs, path, record.address)
        for path in kind.machine.private:
            wire.put(record.outputs, path, record.private)
    elif kind.address:
        lent = _referred(kind, cloud, record, kind.address.get("of"))
        if lent and (one_address or kind.address.get("private")):
            record.address = lent.address
        else:
            record.address = cloud.new_address(public=True)
        if kind.address.get("private"):
            record.private = record.address if one_address else cloud.new_address(public=False)
        wire.put(record.outputs, kind.address["as"], record.private or record.address)


def _lent(kind: Kind, cloud: Cloud, record: Record) -> Record | None:
    """What has the address of a host: its card, or the address that its inputs name."""
    if kind.machine and kind.machine.address:
        return _referred(kind, cloud, record, kind.machine.address)
    for path in kind.machine.public if kind.machine else ():
        if found := _referred(kind, cloud, record, path):
            return found
    return None


def _referred(kind: Kind, cloud: Cloud, record: Record, path: str | None) -> Record | None:
    targets = kind.refers.get(_general(path), ()) if path else ()
    value = wire.value(record.inputs, path) if path else None
    return cloud.first(targets, value) if value else None


def user_data(kind: Kind, inputs: Mapping[str, Any]) -> str:
    """What cloud-init would read on a host.

    Raises:
        RefusedError: there is none.
    """
    if kind.machine is None or not (text := wire.value(inputs, kind.machine.user_data)):
        raise RefusedError("the host has no user data: nobody could log in")
    return base64.b64decode(text).decode() if kind.machine.base64 else str(text)


def boot(table: Table, kind: Kind, record: Record, lab: Lab) -> None:
    """Boots a host that poses as its class; returns when its sshd answers with the key of its user data."""
    account = cloudinit.read(user_data(kind, record.inputs))
    taken = state.hosts(lab.bridge)
    names = (record.name, *(f"{record.name}-{number}" for number in range(2, 100)))
    record.host = next(name for name in names if name not in taken)
    spec = HostSpec(
        bridge=lab.bridge,
        name=record.host,
        address=record.address,
        subnet=f"{lab.subnet}.0/24",
        user=account.user,
        authorised_key="\n".join(account.keys),
        host_key=account.host_key,
        tree=tree_digest(),
        peers={},
        binds={},
        disk_gib=_DISK_GIB,
    )
    shape = load_catalog().clouds[table.cloud].shapes.get(record.shape)
    host.create(spec, account.private_host_key, gpu.tools(shape.host_class) if shape else {})


def alive(record: Record, lab: Lab | None) -> bool:
    """Whether a host is still there; a record alone always is."""
    if lab is None or record.host is None:
        return True
    kept = state.read(state.host_dir(lab.bridge, record.host) / "host.json")
    return bool(kept) and host.alive(HostSpec.from_properties(kept), str(kept["id"]))


def end(record: Record, lab: Lab | None) -> None:
    """Ends a host."""
    if lab and record.host:
        host.delete(lab.bridge, record.host)
