"""Whether a region, its zones and an image can be what a placement says, by the tables of ``recipes/clouds``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.schema.cloud import Placement
from vllm_fleet.schema.cloud_table import CloudTable


def check_place(table: CloudTable, placement: Placement) -> None:
    """Checks region and zones against the cloud's table.

    Args:
        table: the cloud.
        placement: where hosts shall be; one that sets ``unlisted`` is taken as it is.

    Raises:
        FleetError: the table does not have the region or a zone; the error names the key below the placement.
    """
    known = table.regions.zones
    if placement.unlisted:
        return
    if placement.region not in known:
        raise _unlisted(table, "region", placement.region, f"a region of {table.name}", known)
    zones = known[placement.region]
    if zones is None:
        return
    key = "zone" if placement.zone else "zones"
    for zone in placement.all_zones:
        prefix, colon, name = zone.rpartition(":")
        if not zones:
            raise FleetError(f"{placement.region} has no zones", f"remove {key!r}", key=key)
        if table.name == "oci" and not prefix:
            raise FleetError(
                f"{zone!r} lacks the prefix of your tenancy",
                f"write it such as Uocm:{zones[0]}: oci iam availability-domain list",
                key=key,
            )
        if name not in zones:
            named = [f"{prefix}{colon}{each}" for each in zones]
            raise _unlisted(table, key, zone, f"a zone of {placement.region}", named)


def _unlisted(table: CloudTable, key: str, value: str, what: str, known: Iterable[str]) -> FleetError:
    """The error for a name that a table does not have, with the nearest one that it has."""
    names = list(known)
    nearest = difflib.get_close_matches(value, names, n=1, cutoff=0.0)
    dates = ", ".join(sorted({table.sources[source].read for source in table.regions.sources}))
    return FleetError(
        f"{value[:80]!r} is not {what}",
        f"the nearest is {nearest[0]}; if it is newer than recipes/clouds/{table.name}.yml (read {dates}), set "
        "'unlisted: true' beside it",
        key=key,
        code=ErrorCode.BAD_INPUT,
    )
