"""What a provider reads of a resource beyond what the program gave: bundled and attached disks, the cloud's defaults.

A difference that this makes is one that a real account would show at the next ``pulumi up``. Each row of the tables has
its source.
"""

from __future__ import annotations

from typing import Any

from lab.rehearsal import wire
from lab.rehearsal.cloud import Cloud, Record
from lab.rehearsal.table import Kind, ReadBack, Table


def fill(table: Table, kind: Kind, cloud: Cloud, record: Record) -> bool:
    """Sets the outputs of a record to what the provider would read now; returns whether they changed.

    Args:
        table: the cloud.
        kind: the record's type.
        cloud: every other resource.
        record: the resource.
    """
    before = wire.copy(record.outputs)
    for row in kind.read_back:
        if any(wire.value(record.inputs, path) != value for path, value in row.when.items()):
            continue
        value = None if row.forgotten else _value(table, cloud, record, row)
        if value is not None:
            wire.put(record.outputs, row.path, value)
        elif row.forgotten or row.each or row.any:
            # What was attached may be gone.
            record.outputs.pop(row.path, None)
    return record.outputs != before


def _value(table: Table, cloud: Cloud, record: Record, row: ReadBack) -> Any:
    given = wire.value(record.inputs, row.path)
    if row.bundled:
        count, gib = table.bundled.get(record.shape, (0, 0))
        return [{**row.item, "size": gib} for _ in range(count)] or None
    if row.each:
        others = _others(cloud, record, row.each)
        return [*(given or []), *(_item(row, other) for other in others)] or given
    if row.any:
        return True if _others(cloud, record, row.any) else given
    return row.value if given is None else None


def _others(cloud: Cloud, record: Record, written: str) -> list[Record]:
    """The resources of a type whose property names the record: ``TYPE PROPERTY``."""
    token, _, path = written.partition(" ")
    return [other for other in cloud.records_of(token) if record.id in wire.values(other.inputs, path)]


def _item(row: ReadBack, other: Record) -> dict[str, Any]:
    """An item of a list from another resource: a value that begins with ``$`` is one of its inputs."""
    return {
        name: wire.value(other.inputs, value[1:]) if isinstance(value, str) and value.startswith("$") else value
        for name, value in row.item.items()
    }
