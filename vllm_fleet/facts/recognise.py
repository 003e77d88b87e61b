"""Facts of a host -> its host class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog, SizedClass
from vllm_fleet.facts.states import VetoCode
from vllm_fleet.facts.vetoes import counted_gpus, gpus_of_vendor, is_named
from vllm_fleet.schema.recipe import HostClass

Gpu = Mapping[str, Any]


def recognise(facts: Mapping[str, Any], catalog: Catalog) -> SizedClass:
    """The class of a host: by vendor, architecture, name, memory and number of its GPUs.

    A host without a driver is recognised by the GPUs on its PCI bus.

    Args:
        facts: what the host reports, as :func:`vllm_fleet.on_host.gpu_facts.read_facts` returns it.
        catalog: the recipes.

    Raises:
        FleetError: no class fits, more than one does, or the class has no such size; the message lists the GPUs, the
            hint the nearest classes.
    """
    gpus = counted_gpus(facts)
    if not gpus:
        return _recognise_by_bus(facts, catalog)
    described = describe_gpus(gpus)
    fitting = [family for family in catalog.classes.values() if _fits(family, facts["vendor"], gpus)]
    if not fitting:
        message = f"matches no host class: {described}"
        raise FleetError(message, _nearest_classes(catalog, facts["vendor"], gpus), key="host_class")
    # The same chip is sold with more and with less memory, and under longer names; a host with more fits both classes.
    best = max(fitting, key=_closeness)
    others = [family.name for family in fitting if _closeness(family) == _closeness(best)]
    if len(others) > 1:
        raise FleetError(f"matches more than one host class: {described}", ", ".join(others), key="host_class")
    if len(gpus) not in best.counts:
        sizes = ", ".join(f"{best.name}-{count}" for count in best.counts)
        raise FleetError(f"no class has this number of GPUs: {described}", f"it comes as {sizes}", key="host_class")
    return SizedClass(f"{best.name}-{len(gpus)}", best, len(gpus))


#: States of a host whose driver a role can install.
_WITHOUT_DRIVER = frozenset({VetoCode.NO_DRIVER, VetoCode.DRIVER_NOT_LOADED})


def _recognise_by_bus(facts: Mapping[str, Any], catalog: Catalog) -> SizedClass:
    """The class of a host without a driver, by the GPUs on its PCI bus.

    Raises:
        FleetError: a driver is there and reports no GPU, or the bus shows no GPU of one class.
    """
    problems = facts.get("problems", {})
    listed = facts.get("pci_gpus") or {}
    families = [family for family in catalog.classes.values() if any(listed.get(name) for name in family.pci_ids)]
    if len(families) == 1:
        (family,) = families
        count = sum(listed.get(name, 0) for name in family.pci_ids)
        loaded = (facts.get("kernel_driver") or {}).get(family.vendor)
        if count in family.counts and not loaded and problems.get(family.vendor, {}).get("state") in _WITHOUT_DRIVER:
            return SizedClass(f"{family.name}-{count}", family, count)
    why = "; ".join(problem["why"] for problem in problems.values())
    reasons = "; ".join([*([why] if why else []), *([f"on its PCI bus: {describe_bus(listed)}"] if listed else [])])
    raise FleetError(
        f"no tool reports a GPU that can run a model{f': {reasons}' if reasons else ''}",
        "write the host with its host_class into fleet.yml: a role installs the driver where 'driver: managed' holds; "
        "or install the vendor's driver and tools first",
        key="host_class",
    )


def check_said_class(facts: Mapping[str, Any], said: SizedClass, catalog: Catalog) -> None:
    """Refuses a class that the PCI bus of a host contradicts, whose GPUs no tool reports. An unknown bus refuses none.

    Args:
        facts: what the host reports.
        said: the class that its user says it has.
        catalog: the recipes.

    Raises:
        FleetError: the bus has other GPUs than the class, or another number of them.
    """
    listed = facts.get("pci_gpus")
    if listed is None or said.family.vendor == "cpu":
        return
    own = sum(listed.get(name, 0) for name in said.family.pci_ids)
    known = {name for family in catalog.classes.values() for name in family.pci_ids}
    # A GPU of the class may have a number that no class lists.
    of_vendor = gpus_of_vendor(listed, said.family.vendor)
    unknown = sum(count for name, count in of_vendor.items() if name not in known)
    if not own <= said.count <= own + unknown:
        seen = f"its PCI bus has {describe_bus(listed)}" if listed else "its PCI bus has no GPU"
        raise FleetError(
            f"is not {said.id}: {seen}",
            "give the class of its hardware; a host without a GPU is cpu-2",
            key="--host-class",
        )


def describe_bus(listed: Mapping[str, int]) -> str:
    """The GPUs on the PCI bus for people: ``8 x 10de:2330``."""
    return ", ".join(f"{count} x {name}" for name, count in sorted(listed.items()))


def describe_gpus(gpus: Sequence[Gpu]) -> str:
    """The GPUs for people: ``8 x NVIDIA H200 (sm_90, 140.4 GiB)``."""
    kinds: dict[str, int] = {}
    for gpu in gpus:
        memory = f"{gpu['memory_mib'] / 1024:.1f} GiB" if gpu["memory_mib"] else "memory unknown"
        text = f"{gpu['name'] or 'a GPU without a name'} ({gpu['arch'] or 'architecture unknown'}, {memory})"
        kinds[text] = kinds.get(text, 0) + 1
    return ", ".join(f"{count} x {text}" for text, count in kinds.items())


def _closeness(family: HostClass) -> tuple[float, int]:
    return _floor(family), len(family.facts.gpu_name or "")


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


def _nearest_classes(catalog: Catalog, vendor: str | None, gpus: Sequence[Gpu]) -> str:
    """The classes with the same name or architecture, else all of the vendor."""
    same_vendor = [family for family in catalog.classes.values() if family.vendor == vendor]
    near = list(_with_name(same_vendor, gpus)) or list(_with_arch(same_vendor, gpus)) or same_vendor
    return f"the nearest classes: {', '.join(family.name for family in near)}" if near else "the vendor has no class"


def _with_name(families: Sequence[HostClass], gpus: Sequence[Gpu]) -> Iterator[HostClass]:
    for family in families:
        if any(is_named(gpu["name"], family.facts.gpu_name or family.name) for gpu in gpus):
            yield family


def _with_arch(families: Sequence[HostClass], gpus: Sequence[Gpu]) -> Iterator[HostClass]:
    return (family for family in families if any(gpu["arch"] == family.arch for gpu in gpus))
