"""The speed of a host's network disks: what the fleet orders, within the limits of ``recipes/clouds``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue.rental import Rented
from vllm_fleet.schema.cloud_table import DiskType

#: Which disk: that of the system, or the one for models.
Which = Literal["root", "models"]
#: Disk -> the beginning of its keys in the placement.
_KEYS: dict[Which, str] = {"root": "disk", "models": "model_disk"}


@dataclass(frozen=True)
class DiskSpeed:
    """What is ordered of a disk; None: nothing, it is the cloud's own."""

    iops: int | None
    throughput_mib_s: int | None


def type_name(rented: Rented, which: Which) -> str | None:
    """The cloud's name for the type of a disk; None where the table has none.

    Args:
        rented: how the host is rented.
        which: the disk.
    """
    choices = [entry.disks for entry in (rented.entry, rented.table) if entry and entry.disks]
    return getattr(choices[0], which) if choices else None


def ordered(rented: Rented, which: Which) -> DiskSpeed:
    """The speed that is ordered for a disk: what the fleet says, else what its type gets here.

    Args:
        rented: how the host is rented.
        which: the disk.
    """
    kind, (iops, mib_s) = _type(rented, which), _given(rented, which)
    if kind is None or not kind.can_be_ordered:
        return DiskSpeed(None, None)
    least = _needed_iops(kind, mib_s) if mib_s is not None else None
    if iops is None:
        iops = max(kind.default_iops, least or 0) if kind.default_iops is not None else least
    if mib_s is None and kind.default_throughput_mib_s is not None and iops is not None:
        mib_s = min(kind.default_throughput_mib_s, int(iops * kind.mib_s_per_iops))
    return DiskSpeed(iops, mib_s)


def throughput_mib_s(rented: Rented, which: Which) -> float | None:
    """The throughput of a disk in MiB/s, no more than the host reaches; None where it is not known.

    Args:
        rented: how the host is rented.
        which: the disk.
    """
    kind, placement = _type(rented, which), rented.placement
    if kind is None:
        return None
    size = placement.disk_gib if which == "root" else placement.model_disk_gib
    own = ordered(rented, which).throughput_mib_s or kind.mib_s_of(size)
    most = rented.entry.disks_mib_s if rented.entry else None
    return min(own, most) if own and most else own


def check(rented: Rented, at: tuple[str, ...], document: yaml_document.Document) -> Iterator[FleetError]:
    """What is wrong with the speed that a placement orders.

    Args:
        rented: how the hosts are rented.
        at: where their placement is in the fleet's file.
        document: that file.
    """
    for which, begin in _KEYS.items():
        iops, mib_s = _given(rented, which)
        given = {f"{begin}_iops": iops, f"{begin}_throughput_mib_s": mib_s}
        for key, value in given.items():
            if value is not None and (fault := _fault(rented, which, key)):
                yield document.error((*at, key), *fault, ErrorCode.REFUSED)
                break


def _fault(rented: Rented, which: Which, key: str) -> tuple[str, str] | None:
    """What is wrong with a key that is given, and what to do."""
    kind, begin, placement = _type(rented, which), _KEYS[which], rented.placement
    name, size_gib = type_name(rented, which), getattr(placement, f"{begin}_gib")
    iops, mib_s = _given(rented, which)
    if which == "models" and not size_gib:
        return f"is {getattr(placement, key)}, but there is no disk for models", "give 'model_disk_gib' too"
    if kind is None or kind.iops is None or kind.throughput_mib_s is None:
        what = f"{name}, whose speed comes with its size" if name else "a disk whose speed the size of the host decides"
        more = f": give a larger '{begin}_gib'" if name else ""
        return f"cannot be ordered: {rented.shape} of {rented.table.name} has {what}", f"remove it{more}"
    limits = kind.iops if key.endswith("_iops") else kind.throughput_mib_s
    value = getattr(placement, key)
    if not limits.least <= value <= limits.most:
        return f"is {value}, and {name} takes {limits.least} to {limits.most}", "give a value between them"
    asked = ordered(rented, which)
    if asked.iops and asked.iops > kind.iops_per_gib * size_gib:
        most = kind.iops_per_gib * size_gib
        why = f"is {value}, which takes {asked.iops} IOPS: {name} of {size_gib} GiB has {most} at most"
        return why, f"'{begin}_gib' of {-(-asked.iops // kind.iops_per_gib)} has them"
    if iops and mib_s and mib_s > iops * kind.mib_s_per_iops:
        why = f"is {value}: with {iops} IOPS {name} has {int(iops * kind.mib_s_per_iops)} MiB/s at most, not {mib_s}"
        return why, f"{mib_s} MiB/s take {_needed_iops(kind, mib_s)} IOPS"
    return None


def _type(rented: Rented, which: Which) -> DiskType | None:
    name = type_name(rented, which)
    return rented.table.disk_types.get(name) if name else None


def _given(rented: Rented, which: Which) -> tuple[int | None, int | None]:
    placement = rented.placement
    if which == "root":
        return placement.disk_iops, placement.disk_throughput_mib_s
    return placement.model_disk_iops, placement.model_disk_throughput_mib_s


def _needed_iops(kind: DiskType, mib_s: int) -> int:
    """The least IOPS that a throughput takes."""
    least = kind.iops.least if kind.iops else 0
    return max(least, -int(-mib_s // kind.mib_s_per_iops))
