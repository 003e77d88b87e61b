"""What ``init`` tells a person about a host beside its class."""

from __future__ import annotations

from typing import Any

import pytest
from healthy_host import H100, HEALTHY

from vllm_fleet.facts.notes import describe_state

MI300X = {"name": "AMD Instinct MI300X", "memory_mib": 196592, "arch": "gfx942"}


@pytest.mark.parametrize(
    ("facts", "notes"),
    [
        (HEALTHY, []),
        ({**HEALTHY, "nvswitches": 4}, ["4 NVSwitches"]),
        ({**HEALTHY, "nvswitches": 0, "nvlinks": 6}, ["no NVSwitch, 6 NVLinks a GPU"]),
        ({**HEALTHY, "nvswitches": 0, "nvlinks": None, "gpus": [H100]}, []),
        ({**HEALTHY, "mig_gpus": 2}, ["MIG mode on 2 of 8 GPUs (turn it off)"]),
        (
            {"vendor": "amd", "gpus": [MI300X], "compute_partitions": ["CPX"], "memory_partitions": ["NPS1"]},
            ["partitions CPX, NPS1 (set SPX and NPS1)"],
        ),
        (
            {"vendor": "amd", "gpus": [MI300X], "iommu": "translated"},
            ["IOMMU without passthrough (AMD asks for iommu=pt)"],
        ),
        ({**HEALTHY, "acs_bridges": 8}, ["ACS on 8 PCI bridges (traffic between GPUs is slower)"]),
        ({"gpus": [], "pci_gpus": {"10de:2330": 8}}, ["no driver yet, on its PCI bus: 8 x 10de:2330"]),
        (
            {"gpus": [], "secure_boot": True, "nouveau": True, "cloud_init": "running"},
            ["Secure Boot on", "nouveau loaded", "first boot by cloud-init: running"],
        ),
        ({"gpus": [], "docker": {"package": "docker-ce", "version": "28.1"}}, ["container engine docker-ce 28.1"]),
        (
            {
                "gpus": [],
                "kernel": "6.8.0-1",
                "kernel_headers": False,
                "next_kernel": "6.8.0-2",
                "next_kernel_headers": False,
            },
            ["no headers of the kernel 6.8.0-1", "no headers of the kernel 6.8.0-2"],
        ),
        ({"gpus": [], "kernel": "6.8.0-1", "kernel_headers": True, "next_kernel": None}, []),
        ({"gpus": [], "docker": {"package": "snap", "version": None}}, ["container engine snap"]),
    ],
)
def test_the_notes_of_a_host(facts: dict[str, Any], notes: list[str]) -> None:
    assert list(describe_state(facts)) == notes
