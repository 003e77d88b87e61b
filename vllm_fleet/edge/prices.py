"""Prices of gpuhunt's public catalogue: an optional dependency, which downloads the catalogue on each use."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue.rental import Rented
from vllm_fleet.fleet.cost import Price, PriceList

#: The clouds in the catalogue; for DigitalOcean gpuhunt needs an account.
_CLOUDS = ("aws", "azure", "gcp", "oci")
_SPOT = {"on-demand": False, "spot": True}


def load(clouds: Iterable[str]) -> PriceList:
    """Reads the current catalogue.

    Args:
        clouds: the clouds to read.

    Raises:
        FleetError: the package is not installed (``bad-input``), or the catalogue cannot be read (``work-failed``).
    """
    wanted = sorted(set(clouds) & set(_CLOUDS))
    items = _items(wanted) if wanted else []

    def find_price(rented: Rented) -> Price | None:
        placement = rented.placement
        spot = _SPOT.get(placement.capacity.kind)
        prices = [
            item.price
            for item in items
            if (item.provider, item.instance_name, item.spot) == (rented.table.name, rented.shape, spot)
            # A location is a region, or in some clouds a zone of the region.
            and (item.location == placement.region or item.location.startswith(f"{placement.region}-"))
        ]
        return Price(min(prices), "gpuhunt's catalogue, list price") if prices else None

    return find_price


def _items(clouds: list[str]) -> list[Any]:
    try:
        gpuhunt = import_module("gpuhunt")
    except ModuleNotFoundError:
        raise FleetError(
            "--prices gpuhunt needs the Python package gpuhunt",
            "run 'make venv', which installs every extra; elsewhere: pip install 'vllm-fleet[prices]'",
        ) from None
    # It logs a stack trace for each list that it cannot read; the error below is enough.
    logging.getLogger("gpuhunt").setLevel(logging.CRITICAL)
    catalogue = gpuhunt.Catalog(auto_reload=False)
    try:
        if "GPUHUNT_CATALOG_DIR" not in os.environ:
            catalogue.load()
        return list(catalogue.query(provider=clouds))
    except Exception as error:
        reason = str(error.__cause__ or error) or type(error).__name__
        raise FleetError(
            f"gpuhunt's catalogue cannot be read: {reason}",
            "run it without --prices to use the fleet's own table",
            code=ErrorCode.WORK_FAILED,
        ) from None
