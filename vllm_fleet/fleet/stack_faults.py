"""What ``pulumi up`` would refuse, as far as it can be known without a cloud: ``check`` and ``plan`` say it too."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet.cloud_sdks import missing_sdks
from vllm_fleet.fleet.placeholders import find_placeholders
from vllm_fleet.fleet.plan import Plan


def find(plan: Plan, catalog: Catalog, *, in_examples: bool = False) -> Iterator[tuple[FleetError, bool]]:
    """What keeps a stack from being made.

    Args:
        plan: the fleet.
        catalog: the recipes.
        in_examples: whether the values of an example are a fault: of it too, no host is made.

    Yields:
        Each fault, and whether the fleet's file is wrong; otherwise something is not on this machine.
    """
    for fault in find_placeholders(plan, in_examples=in_examples):
        yield fault, True
    for fault in missing_sdks(plan, catalog):
        yield fault, False
