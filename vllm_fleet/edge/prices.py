"""Prices of gpuhunt's public catalogue, an optional part of the package that needs the internet when it is asked."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.rental import Rented
from vllm_fleet.fleet.cost import Price, PriceList

#: The clouds that the catalogue has lists of; DigitalOcean's it asks with an account.
_CLOUDS = ("aws", "azure", "gcp", "oci")
_SPOT = {"on-demand": False, "spot": True}


def load(clouds: Iterable[str]) -> PriceList:
    """The catalogue of today.

    Args:
        clouds: whose lists are wanted.

    Raises:
        FleetError: the package is not installed (``bad-input``), or the catalogue cannot be had (``work-failed``).
    """
    wanted = sorted(set(clouds) & set(_CLOUDS))
    items = _items(wanted) if wanted else []

    def look(rented: Rented) -> Price | None:
        placement = rented.placement
        spot = _SPOT.get(placement.capacity.kind)
        found = [
            item.price
            for item in items
            if (item.provider, item.instance_name, item.spot) == (rented.table.name, rented.shape, spot)
            # A location is a region, or with some clouds a zone of one.
            and (item.location == placement.region or item.location.startswith(f"{placement.region}-"))
        ]
        return Price(min(found), "gpuhunt's catalogue, list price") if found else None

    return look


def _items(clouds: list[str]) -> list[Any]:
    try:
        gpuhunt = import_module("gpuhunt")
    except ModuleNotFoundError:
        raise FleetError(
            "--prices gpuhunt needs the Python package gpuhunt",
            "uv sync --extra prices, or: pip install 'vllm-fleet[prices]'",
        ) from None
    # It logs a stack trace for every list that it cannot read; one line is enough.
    logging.getLogger("gpuhunt").setLevel(logging.CRITICAL)
    catalogue = gpuhunt.Catalog(auto_reload=False)
    try:
        if "GPUHUNT_CATALOG_DIR" not in os.environ:
            catalogue.load()
        return list(catalogue.query(provider=clouds))
    except Exception as fault:
        reason = str(fault.__cause__ or fault) or type(fault).__name__
        raise FleetError(
            f"gpuhunt's catalogue cannot be read: {reason}",
            "without --prices the fleet's own table is taken",
            code="work-failed",
        ) from None
