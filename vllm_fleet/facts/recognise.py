"""Facts of a host -> the host class that it is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog, SizedClass
from vllm_fleet.facts.vetoes import counted_gpus, is_named
from vllm_fleet.schema.recipe import HostClass

Gpu = Mapping[str, Any]


def recognise(facts: Mapping[str, Any], catalog: Catalog) -> SizedClass:
    """The class that a host is of: by vendor, architecture, name, memory and number of its GPUs.

    Args:
        facts: what the host says, as :func:`vllm_fleet.on_host.gpu_facts.read_facts` spells it.
        catalog: the recipes.

    Raises:
        FleetError: no class, or no size of one, fits; the message says what was seen, the hint which classes are near.
    """
    gpus = counted_gpus(facts)
    if not gpus:
        problems = "; ".join(facts.get("problems", {}).values())
        raise FleetError(
            f"no tool names a GPU that a model can run on{f': {problems}' if problems else ''}",
            "install the vendor's driver and tools; a host without a GPU is written into fleet.yml by hand",
            key="host_class",
        )
    fitting = [family for family in catalog.classes.values() if _fits(family, facts["vendor"], gpus)]
    if not fitting:
        raise FleetError(f"is of no known class: {seen(gpus)}", _near(catalog, facts["vendor"], gpus), key="host_class")
    # The same chip comes with more and with less memory; what fits the larger one fits both.
    best = max(fitting, key=_floor)
    others = [family.name for family in fitting if _floor(family) == _floor(best)]
    if len(others) > 1:
        raise FleetError(f"is of more than one class: {seen(gpus)}", f"they are {', '.join(others)}", key="host_class")
    if len(gpus) not in best.counts:
        sizes = ", ".join(f"{best.name}-{count}" for count in best.counts)
        raise FleetError(f"no class has this number of GPUs: {seen(gpus)}", f"it comes as {sizes}", key="host_class")
    return SizedClass(f"{best.name}-{len(gpus)}", best, len(gpus))


def seen(gpus: Sequence[Gpu]) -> str:
    """The GPUs as a person would say them: ``8 x NVIDIA H200 (sm_90, 140.4 GiB)``."""
    kinds: dict[str, int] = {}
    for gpu in gpus:
        memory = f"{gpu['memory_mib'] / 1024:.1f} GiB" if gpu["memory_mib"] else "memory unknown"
        text = f"{gpu['name'] or 'a GPU without a name'} ({gpu['arch'] or 'architecture unknown'}, {memory})"
        kinds[text] = kinds.get(text, 0) + 1
    return ", ".join(f"{count} x {text}" for text, count in kinds.items())


def _floor(family: HostClass) -> float:
    return family.facts.gpu_memory_gib_min or 0


def _fits(family: HostClass, vendor: str | None, gpus: Sequence[Gpu]) -> bool:
    return family.vendor == vendor and all(
        gpu["arch"] == family.arch
        and is_named(gpu["name"], family.facts.gpu_name or family.name)
        and gpu["memory_mib"] is not None
        and gpu["memory_mib"] / 1024 >= _floor(family)
        for gpu in gpus
    )


def _near(catalog: Catalog, vendor: str | None, gpus: Sequence[Gpu]) -> str:
    """The classes of the same name or architecture, else all of the vendor."""
    of_vendor = [family for family in catalog.classes.values() if family.vendor == vendor]
    near = list(_of_name(of_vendor, gpus)) or list(_of_arch(of_vendor, gpus)) or of_vendor
    return f"the classes nearest to it: {', '.join(family.name for family in near)}" if near else "no class is near"


def _of_name(families: Sequence[HostClass], gpus: Sequence[Gpu]) -> Iterator[HostClass]:
    return (each for each in families if any(is_named(gpu["name"], each.facts.gpu_name or each.name) for gpu in gpus))


def _of_arch(families: Sequence[HostClass], gpus: Sequence[Gpu]) -> Iterator[HostClass]:
    return (each for each in families if any(gpu["arch"] == each.arch for gpu in gpus))
