"""Values of a ``fleet.yml`` that stand for one of your own, as the examples and the clouds' documentation have them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.yaml_reader import Location
from vllm_fleet.catalogue.rental import is_rented
from vllm_fleet.fleet.plan import Plan

#: Fleets with such a name are the examples themselves, and their rehearsals.
EXAMPLE = "example-"
#: Networks that no host is in: RFC 5737, RFC 3849 and RFC 9637.
_NETWORKS = [
    ipaddress.ip_network(text)
    for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20")
]
#: ``example-project``, ``ocid1.image.oc1..exampleexample``, names below ``example.com`` and ``.example`` (RFC 2606).
_EXAMPLE = re.compile(r"(?<![a-z])(example)+(?![a-z])", re.IGNORECASE)
#: The digits of an id in AWS's documentation, and its accounts.
_DIGITS = ("0123456789abcdef", "123456789012", "111122223333")
#: Text that is read by people alone.
_PROSE = frozenset({"fleet", "prices", "overrides", "why"})


def find_placeholders(plan: Plan, *, in_examples: bool = False) -> Iterator[FleetError]:
    """The values that a real ``pulumi up`` would fail with, or make hosts with that cannot be reached.

    Args:
        plan: the fleet; one that rents nothing has none.
        in_examples: whether to look at an example itself too.
    """
    is_example = plan.fleet.startswith(EXAMPLE) and not in_examples
    if not is_example and any(host.rented for host in plan.hosts):
        yield from _in(plan.document)


def find_in_wrong_file(folder: Path) -> Iterator[FleetError]:
    """The same for a fleet whose plan cannot be made, as far as its file can be read: all errors come in one run.

    Args:
        folder: the fleet's folder.
    """
    if folder.name.startswith(EXAMPLE):
        return
    try:
        document = yaml_document.read_with_errors(folder / "fleet.yml")
    except FleetError:
        return  # it is told with the plan
    pools = document.data.get("pools") if isinstance(document.data, dict) else None
    clouds = [pool.get("cloud") for pool in pools.values() if isinstance(pool, dict)] if isinstance(pools, dict) else []
    if any(isinstance(cloud, str) and is_rented(cloud) for cloud in clouds):
        yield from _in(document)


def _in(document: yaml_document.Document) -> Iterator[FleetError]:
    for location, text in _texts(document.data, ()):
        if kind := _kind(text):
            yield document.error(location, f"is still the example's: {text} is {kind}", "write your own")


def _kind(text: str) -> str | None:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        if any(digits in text for digits in _DIGITS):
            return "an id from documentation"
        return "a placeholder" if _EXAMPLE.search(text) and " " not in text else None
    known = [range_ for range_ in _NETWORKS if range_.version == network.version]
    is_inside = any(network.subnet_of(range_) for range_ in known)  # type: ignore[arg-type]
    return "for documentation, no host has such an address" if is_inside else None


def _texts(value: Any, location: Location) -> Iterator[tuple[Location, str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            if key not in _PROSE:
                yield from _texts(part, (*location, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _texts(part, (*location, index))
    elif isinstance(value, str):
        yield location, value
