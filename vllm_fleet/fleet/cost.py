"""What a plan rents, and what that costs. A price that is not known is reported as unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.catalogue.rental import Rented
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan

#: A month as price lists count it.
HOURS_PER_MONTH = 730
NOT_COUNTED = "disks, addresses, NAT and traffic are not counted"


@dataclass(frozen=True)
class Price:
    """US dollars an hour for one host, and the source."""

    usd_per_hour: float
    source: str


#: How a host is rented -> its price; None where this list does not have it.
PriceList = Callable[[Rented], Price | None]


@dataclass(frozen=True)
class Row:
    """The hosts of one pool, or the gateways.

    Attributes:
        pool: the pool.
        hosts: how many.
        gpus: in all of them.
        host_class: their class; None for gateways.
        cloud: where they are.
        rented: how they are rented; None for static hosts, which cost nothing here.
        price: of one host; None where it is unknown.
        once_usd: what is paid at once, for an order of capacity.
    """

    pool: str
    hosts: int
    gpus: int
    host_class: str | None
    cloud: str
    rented: Rented | None
    price: Price | None
    once_usd: float | None

    @property
    def usd_per_hour(self) -> float | None:
        """What all of them cost an hour; None where it is unknown or they are not paid by the hour."""
        return None if self.price is None else self.price.usd_per_hour * self.hosts

    @property
    def unknown(self) -> bool:
        """Whether their price is unknown."""
        return self.rented is not None and self.hosts > 0 and self.price is None and self.once_usd is None

    def record(self) -> dict[str, Any]:
        """The row as the JSON contract spells it."""
        placement = self.rented.placement if self.rented else None
        return {
            "pool": self.pool,
            "hosts": self.hosts,
            "gpus": self.gpus,
            "host_class": self.host_class,
            "cloud": self.cloud,
            "instance_type": self.rented.shape if self.rented else None,
            "capacity": placement.capacity.kind if placement else None,
            "capacity_id": placement.capacity.id if placement else None,
            "region": placement.region if placement else None,
            "zones": list(placement.all_zones) if placement else [],
            "usd_per_hour_each": self.price.usd_per_hour if self.price else None,
            "usd_per_hour": _round(self.usd_per_hour),
            "price_source": self.price.source if self.price else None,
            "once_usd": self.once_usd,
        }


@dataclass(frozen=True)
class Bill:
    """All rows and their sum."""

    rows: tuple[Row, ...]

    @property
    def usd_per_hour(self) -> float:
        """The sum of what is known."""
        return sum(row.usd_per_hour or 0.0 for row in self.rows)

    @property
    def unknown(self) -> tuple[str, ...]:
        """The pools whose price is unknown; with any, the sum is not the whole."""
        return tuple(row.pool for row in self.rows if row.unknown)

    @property
    def once_usd(self) -> float:
        """What is paid at once."""
        return sum(row.once_usd or 0.0 for row in self.rows)

    def record(self) -> dict[str, Any]:
        """The bill as the JSON contract spells it."""
        return {
            "pools": [row.record() for row in self.rows],
            "total": {
                "hosts": sum(row.hosts for row in self.rows),
                "gpus": sum(row.gpus for row in self.rows),
                "usd_per_hour": _round(self.usd_per_hour),
                "usd_per_month": _round(self.usd_per_hour * HOURS_PER_MONTH),
                "once_usd": _round(self.once_usd),
                "complete": not self.unknown,
                "unknown": list(self.unknown),
                "not_counted": NOT_COUNTED,
            },
        }

    def summary(self) -> str:
        """The sum as one line of text."""
        if not any(row.rented for row in self.rows):
            return "nothing is rented"
        if not any(row.price or row.once_usd for row in self.rows):
            return f"unknown: no price of {', '.join(self.unknown)} is known"
        total = f"{self.usd_per_hour:,.2f} USD an hour, {self.usd_per_hour * HOURS_PER_MONTH:,.0f} USD a month of 730 h"
        if self.once_usd:
            total += f", and up to {self.once_usd:,.2f} USD at once for capacity that is ordered"
        if self.unknown:
            total = f"at least {total}; unknown for {', '.join(self.unknown)}"
        return f"{total} ({NOT_COUNTED})"


def bill(plan: Plan, catalog: Catalog, *lists: PriceList) -> Bill:
    """What a plan rents.

    Args:
        plan: the To-Be.
        catalog: the recipes, for the devices of a class.
        lists: price lists; the first that has a price is right.
    """
    return Bill(tuple(_row(pool, hosts, catalog, lists) for pool, hosts in _pools(plan)))


def own(plan: Plan) -> PriceList:
    """The table in the fleet's own file."""

    def find_price(rented: Rented) -> Price | None:
        prices = plan.spec.prices
        usd_per_hour = prices.usd_per_hour.get(rented.shape, {}).get(rented.placement.capacity.kind) if prices else None
        return (
            None if prices is None or usd_per_hour is None else Price(usd_per_hour, f"{prices.source}, {prices.as_of}")
        )

    return find_price


def _pools(plan: Plan) -> Iterator[tuple[str, list[HostPlan]]]:
    for pool in dict.fromkeys(host.pool for host in plan.hosts):
        yield pool, [host for host in plan.hosts if host.pool == pool]


def _row(pool: str, hosts: list[HostPlan], catalog: Catalog, lists: tuple[PriceList, ...]) -> Row:
    first = hosts[0]
    devices = 0
    if first.host_class and first.host_class.partition("-")[0] != "cpu":
        devices = catalog.host_class(first.host_class).count
    price, once = None, None
    if first.rented:
        price = next(filter(None, (find_price(first.rented) for find_price in lists)), None)
        order = first.rented.placement.capacity.purchase
        if order:
            price, once = None, order.accept_cost_usd
    return Row(pool, len(hosts), devices * len(hosts), first.host_class, first.cloud, first.rented, price, once)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
