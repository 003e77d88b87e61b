from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gpu_stand_ins import CLASSES, facts_of

from lab import gpu
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.facts.recognise import check_said_class, recognise


def a_gpu(name: str | None, memory_mib: int | None, arch: str | None) -> dict[str, Any]:
    return {"name": name, "memory_mib": memory_mib, "arch": arch}


def of(vendor: str | None, *gpus: dict[str, Any]) -> dict[str, Any]:
    return {"vendor": vendor, "gpus": list(gpus), "problems": {}}


H200 = a_gpu("NVIDIA H200", 143771, "sm_90")


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_recognised(tmp_path: Path, catalog: Catalog, name: str) -> None:
    assert recognise(facts_of(tmp_path, gpu.gpus(name)), catalog).id == name


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (of("nvidia", a_gpu("NVIDIA A100-SXM4-80GB", 81920, "sm_80")), "a100-80gb-1"),
        (of("nvidia", a_gpu("NVIDIA A100-PCIE-40GB", 40960, "sm_80")), "a100-40gb-1"),
        (of("nvidia", a_gpu("NVIDIA H100 NVL", 95830, "sm_90")), "h100-nvl-1"),
        (of("nvidia", a_gpu("NVIDIA H100 PCIe", 81559, "sm_90")), "h100-pcie-1"),
        (of("nvidia", a_gpu("NVIDIA H100 80GB HBM3", 81559, "sm_90")), "h100-1"),
        (of("nvidia", *[a_gpu("NVIDIA GB200", 189471, "sm_100")] * 4), "gb200-4"),
        (of("amd", a_gpu("AMD Instinct MI325X VF", 262128, "gfx942")), "mi325x-1"),
        (
            of(
                "amd",
                a_gpu("AMD Radeon AI PRO R9700", 32624, "gfx1201"),
                a_gpu("AMD Radeon Graphics", 512, "gfx1036"),
            ),
            "r9700-1",
        ),
    ],
    ids=["80gb", "40gb", "nvl", "pcie", "sxm", "not-b200", "virtual-function", "integrated-graphics"],
)
def test_what_comes_in_more_than_one_form(catalog: Catalog, facts: dict[str, Any], name: str) -> None:
    assert recognise(facts, catalog).id == name


@pytest.mark.parametrize(
    ("facts", "says", "hint"),
    [
        (of("nvidia", a_gpu("NVIDIA H18", 97871, "sm_90")), "1 x NVIDIA H18 (sm_90, 95.6 GiB)", "h100-pcie, h100, h20"),
        (of("nvidia", a_gpu("Tesla T4", 15360, "sm_75")), "Tesla T4", "rtx5090"),
        (of("nvidia", *[H200] * 3), "this number of GPUs: 3 x NVIDIA H200", "h200-1, h200-2, h200-4, h200-8"),
        (of("nvidia", H200, a_gpu("NVIDIA L40S", 46068, "sm_89")), "1 x NVIDIA H200 (sm_90, 140.4 GiB), 1 x", "l40s"),
        (of("nvidia", a_gpu("NVIDIA A100-SXM4-80GB MIG 1g", 9856, "sm_80")), "9.6 GiB", "a100-40gb, a100-80gb"),
        (of("nvidia", a_gpu(None, None, None)), "a GPU without a name (architecture unknown, memory unknown)", "h200"),
        (of("amd", a_gpu("AMD Instinct MI250X", 65520, "gfx90a")), "MI250X", "mi300x"),
        (
            {"vendor": None, "gpus": [], "problems": {"nvidia": {"state": "no_driver", "why": "nvidia-smi not found"}}},
            "no tool reports a GPU that can run a model: nvidia-smi not found",
            "install the vendor's driver",
        ),
        (of("amd", a_gpu("AMD Radeon Graphics", 512, "gfx1036")), "no tool reports a GPU that can run a model", ""),
    ],
    ids=["near-arch", "old", "three", "mixed", "partition", "unknown", "other-amd", "none", "integrated-only"],
)
def test_what_is_no_class_says_what_was_seen(catalog: Catalog, facts: dict[str, Any], says: str, hint: str) -> None:
    with pytest.raises(FleetError) as caught:
        recognise(facts, catalog)
    assert says in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


NO_TOOL = {"state": "no_driver", "why": "nvidia-smi not found"}


def bare(**facts: Any) -> dict[str, Any]:
    """A host without a driver."""
    return {**of(None), "problems": {"nvidia": NO_TOOL, "amd": {**NO_TOOL, "why": "amd-smi not found"}}, **facts}


@pytest.mark.parametrize(
    ("listed", "name"),
    [
        ({"10de:2330": 8}, "h100-8"),
        ({"10de:2331": 2}, "h100-pcie-2"),
        ({"10de:20b2": 8}, "a100-80gb-8"),
        ({"10de:2901": 8}, "b200-8"),
        ({"1002:74a1": 8}, "mi300x-8"),
        ({"1002:7551": 1, "1002:164e": 1}, "r9700-1"),
    ],
)
def test_a_host_without_a_driver_is_recognised_by_its_bus(catalog: Catalog, listed: dict[str, int], name: str) -> None:
    assert recognise(bare(pci_gpus=listed), catalog).id == name


@pytest.mark.parametrize(
    "facts",
    [
        {"pci_gpus": {"10de:1eb8": 1}},
        {"pci_gpus": {"10de:2330": 7}},
        {"pci_gpus": {"10de:2330": 4, "10de:2335": 4}},
        {"pci_gpus": {"10de:2330": 8}, "kernel_driver": {"nvidia": "580.159.03", "amd": None}},
        {
            "pci_gpus": {"10de:2330": 8},
            "problems": {"nvidia": {"state": "gpu_lost", "why": "nvidia-smi has lost a GPU"}},
        },
        {"pci_gpus": None},
    ],
    ids=["no class", "no size", "two classes", "driver loaded", "lost", "unknown"],
)
def test_what_the_bus_does_not_tell_is_refused_with_what_to_do(catalog: Catalog, facts: dict[str, Any]) -> None:
    with pytest.raises(FleetError, match="no tool reports a GPU") as caught:
        recognise(bare(**facts), catalog)
    assert "write the host with its host_class into fleet.yml" in caught.value.hint
    for name, count in (facts["pci_gpus"] or {}).items():
        assert f"{count} x {name}" in caught.value.message


def test_no_two_classes_share_a_device(catalog: Catalog) -> None:
    listed = [name for family in catalog.classes.values() for name in family.pci_ids]
    assert len(listed) == len(set(listed))
    assert all(family.pci_ids or family.vendor == "cpu" for family in catalog.classes.values())


@pytest.mark.parametrize(
    ("said", "listed"),
    [
        ("h100-8", None),
        ("h100-8", {"10de:2330": 8}),
        ("h100-8", {"10de:2330": 8, "1002:164e": 1}),
        # Numbers that no class lists may be GPUs of this one.
        ("h100-8", {"10de:ffff": 8}),
        ("h100-8", {"10de:2330": 4, "10de:ffff": 4}),
        ("cpu-2", {}),
        ("cpu-2", {"1002:164e": 1}),
    ],
)
def test_a_said_class_that_the_bus_allows_is_taken(catalog: Catalog, said: str, listed: dict[str, int] | None) -> None:
    check_said_class(bare(pci_gpus=listed), catalog.host_class(said), catalog)


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        ({}, "is not h100-8: its PCI bus has no GPU"),
        ({"1002:164e": 1}, "is not h100-8: its PCI bus has 1 x 1002:164e"),
        ({"10de:2330": 7}, "is not h100-8: its PCI bus has 7 x 10de:2330"),
        ({"10de:2335": 8}, "is not h100-8: its PCI bus has 8 x 10de:2335"),
        ({"10de:2330": 9}, "is not h100-8: its PCI bus has 9 x 10de:2330"),
        ({"10de:ffff": 1}, "is not h100-8: its PCI bus has 1 x 10de:ffff"),
    ],
    ids=["none", "other-vendor", "too-few", "other-class", "too-many", "display"],
)
def test_a_said_class_that_the_bus_contradicts_is_refused(catalog: Catalog, listed: dict[str, int], says: str) -> None:
    with pytest.raises(FleetError) as caught:
        check_said_class(bare(pci_gpus=listed), catalog.host_class("h100-8"), catalog)
    assert (caught.value.message, caught.value.key, caught.value.exit_code) == (says, "--host-class", 2)
