"""The hosts of an emulated cloud: records only, or hosts of the lab with the tools of their class."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from lab import cleanup, gpu, host, network, state
from lab.rehearsal import cloudinit, wire
from lab.rehearsal.addresses import CHOSEN
from lab.rehearsal.cloud import Cloud, Record, RefusedError
from lab.rehearsal.table import Kind, Table
from lab.spec import HostSpec, NetworkSpec
from lab.tree import tree_digest
from vllm_fleet.catalogue.catalogue import load as load_catalog

_DISK_GIB = 1


@dataclass(frozen=True)
class Lab:
    """The lab for the hosts of a rehearsal.

    Attributes:
        bridge: its bridge on this machine.
        subnet: such as ``10.78.0``, without its last number.
        owner: the folder that owns the lab.
    """

    bridge: str
    subnet: str
    owner: Path

    @property
    def addresses(self) -> IPv4Network:
        """The range of its addresses: a host of the lab has one address for everything."""
        return IPv4Network(f"{self.subnet}.0/24")

    def open(self) -> None:
        """Creates the network, after removing the rest of a killed rehearsal."""
        self.close()
        network.create(NetworkSpec(self.bridge, f"{self.subnet}.0/24", str(self.owner), _DISK_GIB * 5))

    def close(self) -> None:
        """Removes every host and the network; does nothing without them."""
        if state.lab_dir(self.bridge).is_dir():
            cleanup.down(self.bridge)


def zone_of(table: Table, kind: Kind, cloud: Cloud, inputs: Mapping[str, Any]) -> str:
    """The zone of a resource: that of its host, or the one in its inputs."""
    ways = kind.machine.zone if kind.machine else ("availabilityZone", "zone", "zones.0")
    zone, _ = _at_end(table, kind, cloud, inputs, ways)
    return zone


def _at_end(
    table: Table, kind: Kind, cloud: Cloud, inputs: Mapping[str, Any], ways: tuple[str, ...]
) -> tuple[str, Record | None]:
    """The first value that one of the ways leads to, and the last record on the way, None for the inputs themselves."""
    for way in ways:
        bag: Any = inputs
        here: Kind | None = kind
        record: Record | None = None
        *steps, last = way.split(">")
        for path in steps:
            value = wire.value(bag, path) if here else None
            targets = here.refers.get(wire.general(path), ()) if here else ()
            record = cloud.first(targets, value) if value else None
            bag, here = (record.inputs, table.kinds.get(record.type)) if record else ({}, None)
        value = wire.value(bag, last) if here else None
        if value is not None and not wire.is_unknown(value):
            return str(value), record
    return "", None


def place(table: Table, kind: Kind, cloud: Cloud, record: Record, one_address: bool) -> None:
    """Sets the addresses of a record: from the record that it refers to, or new ones.

    Args:
        table: the cloud's table.
        kind: the record's type.
        cloud: the cloud.
        record: the record; its outputs get the addresses.
        one_address: whether a host has one address for everything.

    Raises:
        RefusedError: the network has no free address.
    """
    if kind.machine:
        lent = _lent(kind, cloud, record)
        record.address = lent.address if lent else cloud.new_address()
        if one_address:
            record.private = record.address
        elif lent and lent.private:
            record.subnet, record.private = lent.subnet, lent.private
        else:
            _place_inside(table, kind, cloud, record, kind.machine.block)
        for path in kind.machine.public:
            wire.put(record.outputs, path, record.address)
        for path in kind.machine.private:
            wire.put(record.outputs, path, record.private)
    elif kind.address:
        lent = _referred(kind, cloud, record, kind.address.get("of"))
        if lent and (one_address or kind.address.get("private")):
            record.address = lent.address
        else:
            record.address = cloud.new_address()
        if kind.address.get("private") and one_address:
            record.private = record.address
        elif kind.address.get("private"):
            _place_inside(table, kind, cloud, record, tuple(kind.address["block"]))
        wire.put(record.outputs, kind.address["as"], record.private or record.address)


def _place_inside(table: Table, kind: Kind, cloud: Cloud, record: Record, ways: tuple[str, ...]) -> None:
    """Gives a record an address of its subnet, or of the range that a cloud chooses where the program gives none."""
    block, subnet = _at_end(table, kind, cloud, record.inputs, ways)
    record.subnet = subnet.id if subnet else "the network that the cloud chose"
    record.private = cloud.new_address(record.subnet, IPv4Network(block) if block else CHOSEN)


def _lent(kind: Kind, cloud: Cloud, record: Record) -> Record | None:
    """The record with the address of a host: its interface, or the address in its inputs."""
    if kind.machine and kind.machine.address:
        return _referred(kind, cloud, record, kind.machine.address)
    for path in kind.machine.public if kind.machine else ():
        if lender := _referred(kind, cloud, record, path):
            return lender
    return None


def _referred(kind: Kind, cloud: Cloud, record: Record, path: str | None) -> Record | None:
    targets = kind.refers.get(wire.general(path), ()) if path else ()
    value = wire.value(record.inputs, path) if path else None
    return cloud.first(targets, value) if value else None


def user_data(kind: Kind, inputs: Mapping[str, Any]) -> str:
    """The user data of a host, as cloud-init reads it.

    Raises:
        RefusedError: it has no user data.
    """
    if kind.machine is None or not (text := wire.value(inputs, kind.machine.user_data)):
        raise RefusedError("the host has no user data, so that no login is possible")
    return base64.b64decode(text).decode() if kind.machine.base64 else str(text)


def boot(table: Table, kind: Kind, record: Record, lab: Lab) -> None:
    """Boots a host with the tools of its class; returns when its sshd answers with the key of its user data."""
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
    """Whether a host still runs; a record without a host always does."""
    if lab is None or record.host is None:
        return True
    kept = state.read(state.host_dir(lab.bridge, record.host) / "host.json")
    return bool(kept) and host.alive(HostSpec.from_properties(kept), str(kept["id"]))


def end(record: Record, lab: Lab | None) -> None:
    """Ends a host."""
    if lab and record.host:
        host.delete(lab.bridge, record.host)
