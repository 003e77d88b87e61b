"""How ``vllm-fleet plan`` shows hosts, cost and changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from vllm_fleet.fleet.cost import Bill, Row
from vllm_fleet.fleet.first_copy import FirstCopy
from vllm_fleet.fleet.replacement import Change
from vllm_fleet.host.model_sources import ModelReport
from vllm_fleet.resolve.deployment import Deployment

_UNKNOWN = "unknown"
#: Up to so many hosts of one change are listed by name; more, as in a new fleet, are counted.
_SHOWN = 20


def hosts(records: Sequence[Mapping[str, Any]]) -> Table:
    """What each host runs."""
    table = _table("host", "class", "model", "engine", "profile", "instances", "sequences", "status")
    for record in records:
        first = record["instances"][0] if record["instances"] else None
        if first is None:
            table.add_row(record["host"], "-", "gateway", "-", "-", "-", "-", "-")
            continue
        table.add_row(
            record["host"],
            first["host_class"],
            first["model"],
            first["engine"],
            first["profile"],
            f"{first['instances']} x TP{first['tensor_parallel_size']}",
            f"{first['fit']['max_num_seqs']} of {first['fit']['sequence_tokens']} tokens",
            first["status"],
        )
    return table


def memory_lines(deployments: Iterable[Deployment | None]) -> Iterator[str]:
    """The memory of one device of each kind of deployment, once."""
    told: dict[str, None] = {}
    for each in deployments:
        if each and each.fit.device:
            told[f"memory: {each.host_class}, {each.profile}: a device has {each.fit.device.text()}"] = None
    yield from told


def models(reports: Sequence[ModelReport]) -> Table:
    """Where each model comes from, whose digests verify it, and how many bytes move."""
    table = _table("model", "source", "digests from", "size", "hosts", "moves")
    for report in reports:
        sizes = [f"{number / 2**30:.1f} GiB" for number in (report.bytes, report.moves)]
        table.add_row(report.model, report.source, report.digests, sizes[0], str(report.hosts), sizes[1])
    return table


def first_copies(copies: Sequence[FirstCopy]) -> Table:
    """How long the first copy of the weights takes on a host of each pool, and what limits it."""
    table = _table("pool", "weights", "land on", "first copy", "limited by")
    for copy in copies:
        time, limit = _UNKNOWN, f"not known: the speed of {' and of '.join(copy.unknown)}"
        if (slowest := copy.slowest) and copy.seconds is not None:
            minutes, seconds = divmod(round(copy.seconds), 60)
            time = f"at least {minutes} min {seconds} s" if minutes else f"at least {seconds} s"
            limit = f"{slowest.what}, {slowest.mib_s:,.0f} MiB/s"
        table.add_row(copy.pool, f"{copy.weights_gib:.1f} GiB", copy.disk, time, limit)
    return table


def costs(bill: Bill) -> Table:
    """What is rented, where, how, and for how much."""
    table = _table("pool", "hosts", "GPUs", "type", "capacity", "region", "zones", "USD/h each", "USD/h", "price from")
    for row in bill.rows:
        table.add_row(row.pool, str(row.hosts), str(row.gpus), *_rent(row))
    return table


def _rent(row: Row) -> tuple[str, ...]:
    if row.rented is None:
        return (f"{row.cloud}: hosts of your own", "-", "-", "-", "-", "-", "-")
    placement = row.rented.placement
    source = row.price.source if row.price else "-"
    host_price = f"{row.price.usd_per_hour:,.2f}" if row.price else _UNKNOWN
    both = f"{row.usd_per_hour:,.2f}" if row.usd_per_hour is not None else _UNKNOWN
    if row.once_usd is not None:
        host_price, both, source = "-", f"once {row.once_usd:,.2f}", "accept_cost_usd of the order"
    capacity = f"{placement.capacity.kind} {placement.capacity.id or ''}".strip()
    zones = ", ".join(placement.all_zones) or "any"
    return (f"{row.cloud} {row.rented.shape}", capacity, placement.region, zones, host_price, both, source)


def change_lines(changes: Sequence[Change], run: Sequence[str]) -> Iterator[str]:
    """The changes, and the commands for them, as lines."""
    for what in dict.fromkeys(change.what for change in changes):
        mine = [change for change in changes if change.what == what]
        if len(mine) > _SHOWN and not mine[0].ends_it:
            yield f"would {what} {len(mine)} hosts"
            continue
        for change in mine:
            yield f"would {change}"
    if run:
        yield "run, in this order:"
        yield from (f"  {line}" for line in run)


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title)
    return table
