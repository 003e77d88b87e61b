"""Facts of a host -> notes for the operator before a rollout, each in a few words.

What must stop a run is a veto, see :mod:`vllm_fleet.facts.vetoes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_fleet.facts.recognise import describe_bus
from vllm_fleet.facts.vetoes import counted_gpus


def describe_state(facts: Mapping[str, Any]) -> Iterator[str]:
    """What is special about a host. An unknown fact is no note.

    Args:
        facts: what the host reports, as :func:`vllm_fleet.on_host.gpu_facts.read_facts` returns it.
    """
    gpus = len(counted_gpus(facts))
    if not gpus and facts.get("pci_gpus"):
        yield f"no driver yet, on its PCI bus: {describe_bus(facts['pci_gpus'])}"
    switches = facts.get("nvswitches")
    if switches:
        yield f"{switches} NVSwitches"
    elif switches == 0 and facts.get("vendor") == "nvidia" and gpus > 1:
        links = facts.get("nvlinks")
        yield "no NVSwitch" + (f", {links} NVLinks a GPU" if links else "")
    if parts := facts.get("mig_gpus"):
        yield f"MIG mode on {parts} of {gpus} GPUs (turn it off)"
    if facts.get("vendor") == "amd":
        modes = [*(facts.get("compute_partitions") or ()), *(facts.get("memory_partitions") or ())]
        if set(modes) - {"SPX", "NPS1"}:
            yield f"partitions {', '.join(modes)} (set SPX and NPS1)"
        if facts.get("iommu") == "translated":
            yield "IOMMU without passthrough (AMD asks for iommu=pt)"
    if facts.get("acs_bridges") and gpus > 1:
        yield f"ACS on {facts['acs_bridges']} PCI bridges (traffic between GPUs is slower)"
    if facts.get("secure_boot"):
        yield "Secure Boot on"
    for key, kernel in (("kernel_headers", "kernel"), ("next_kernel_headers", "next_kernel")):
        if (
            not gpus
            and facts.get(key) is False
            and (key == "kernel_headers" or facts.get("kernel") != facts.get(kernel))
        ):
            yield f"no headers of the kernel {facts.get(kernel)}"
    if facts.get("nouveau"):
        yield "nouveau loaded"
    if facts.get("cloud_init") in ("running", "error"):
        yield f"first boot by cloud-init: {facts['cloud_init']}"
    docker = facts.get("docker") or {}
    if docker.get("package"):
        yield " ".join(filter(None, ("container engine", docker["package"], docker.get("version"))))
