"""Facts that must stop a run: one row each, with what is wrong and what to do about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab import gpu
from lab.rootfs import write_files
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.facts import vetoes
from vllm_fleet.host.manifest import Manifest, wanted_facts
from vllm_fleet.operate import drift, probing

H200 = {"name": "NVIDIA H200", "memory_mib": 143771, "arch": "sm_90"}
MI300X = {"name": "AMD Instinct MI300X", "memory_mib": 196592, "arch": "gfx942"}
IGPU = {"name": "AMD Radeon Graphics", "memory_mib": 2048, "arch": "gfx1036"}
HEALTHY: Mapping[str, Mapping[str, Any]] = {
    "h200-2": {
        "vendor": "nvidia",
        "gpus": [H200, H200],
        "driver": "580.159.03",
        "cuda": "13.0",
        "rocm": None,
        "ecc_uncorrected": 0,
        "xid": [],
        "glibc": "2.39",
    },
    "mi300x-2": {
        "vendor": "amd",
        "gpus": [MI300X, MI300X],
        "driver": "6.14.14",
        "cuda": None,
        "rocm": "7.0.2",
        "ecc_uncorrected": None,
        "xid": None,
        "glibc": "2.39",
    },
}
NOTHING = {"vendor": None, "gpus": [], "driver": None, "cuda": None, "rocm": None}
FLOORS = {"h200-2": {"driver_min": "570.26"}, "mi300x-2": {"driver_min": "6.12", "glibc_min": "2.35"}}


def judge(catalog: Catalog, name: str, changes: Mapping[str, Any]) -> tuple[vetoes.Veto, ...]:
    wanted = wanted_facts(catalog.host_class(name)) | FLOORS[name]
    return vetoes.find_vetoes(wanted, {**HEALTHY[name], **changes})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("h200-2", {}),
        ("mi300x-2", {}),
        ("mi300x-2", {"gpus": [MI300X, IGPU, MI300X]}),
        ("h200-2", {"ecc_uncorrected": None, "xid": None}),
        ("h200-2", {"xid": [13, 31, 43, 94]}),
    ],
    ids=["nvidia", "amd", "integrated-graphics", "not-counted", "xid-of-programs"],
)
def test_a_healthy_host_is_not_stopped(catalog: Catalog, name: str, changes: dict[str, Any]) -> None:
    assert judge(catalog, name, changes) == ()


@pytest.mark.parametrize(
    ("name", "changes", "code", "says"),
    [
        (
            "h200-2",
            {**NOTHING, "problems": {"nvidia": {"state": "no_driver", "why": "nvidia-smi not found"}}},
            "no_driver",
            "nvidia-smi not found: install the driver, 570.26 or newer",
        ),
        (
            "h200-2",
            {
                **NOTHING,
                "problems": {"nvidia": {"state": "driver_mismatch", "why": "nvidia-smi says: version mismatch"}},
            },
            "driver_mismatch",
            "version mismatch: restart the host, so that the installed driver is loaded",
        ),
        (
            "h200-2",
            {**NOTHING, "problems": {"nvidia": {"state": "no_gpus", "why": "nvidia-smi says: No devices were found"}}},
            "no_gpus",
            "No devices were found: look for the driver in the kernel's log (dmesg)",
        ),
        (
            "h200-2",
            {**NOTHING, "problems": {"nvidia": {"state": "tool_failed", "why": "nvidia-smi says: exit status 7"}}},
            "tool_failed",
            "nvidia-smi says: exit status 7: look for the driver in the kernel's log (dmesg), repair or install",
        ),
        (
            "h200-2",
            {**NOTHING, "problems": {"nvidia": {"state": "tool_failed", "why": "nvidia-smi says: libfoo not found"}}},
            "tool_failed",
            "look for the driver in the kernel's log (dmesg)",
        ),
        (
            "h200-2",
            {**NOTHING, "problems": {"nvidia": {"state": "tool_hangs", "why": "nvidia-smi gives no answer"}}},
            "tool_hangs",
            "nvidia-smi gives no answer: look for the driver in the kernel's log (dmesg)",
        ),
        ("h200-2", NOTHING, "no_gpus", "nvidia-smi lists no GPU: look for the driver"),
        (
            "h200-2",
            HEALTHY["mi300x-2"],
            "wrong_vendor",
            "has GPUs of amd (AMD Instinct MI300X), its class has 2 of nvidia",
        ),
        (
            "h200-2",
            {"gpus": [H200]},
            "too_few_gpus",
            "has 1 GPU, its class has 2: look for the missing ones in the kernel's log",
        ),
        ("h200-2", {"gpus": [H200] * 8}, "too_many_gpus", "has 8 GPUs, its class has 2: choose the class of that size"),
        (
            "h200-2",
            {"gpus": [H200, {**H200, "name": "NVIDIA H100 80GB HBM3"}]},
            "wrong_gpu_name",
            "its GPU is NVIDIA H100 80GB HBM3, that of its class is H200: choose the class of that GPU",
        ),
        (
            "h200-2",
            {"gpus": [H200, {**H200, "name": None}]},
            "wrong_gpu_name",
            "its GPU is unknown, that of its class is H200",
        ),
        (
            "h200-2",
            {"gpus": [H200, {**H200, "name": "NVIDIA GH200 480GB"}]},
            "wrong_gpu_name",
            "its GPU is NVIDIA GH200 480GB",
        ),
        (
            "h200-2",
            {"gpus": [{**H200, "arch": "sm_80"}, H200]},
            "wrong_gpu_arch",
            "the architecture of its GPU is sm_80, that of its class is sm_90",
        ),
        (
            "h200-2",
            {"gpus": [{**H200, "arch": None}, H200]},
            "wrong_gpu_arch",
            "the architecture of its GPU is unknown",
        ),
        (
            "h200-2",
            {"gpus": [H200, {**H200, "memory_mib": 71885}]},
            "too_little_gpu_memory",
            "a GPU has 70.2 GiB of memory, its class needs 138.0: choose the class of that GPU, or end its partitions",
        ),
        (
            "h200-2",
            {"gpus": [H200, {**H200, "memory_mib": None}]},
            "gpu_memory_unknown",
            "the memory of a GPU is unknown: nvidia-smi does",
        ),
        (
            "h200-2",
            {"driver": "535.183.01"},
            "driver_too_old",
            "needs the driver 570.26 or newer: it has 535.183.01; install driver >= 570.26",
        ),
        (
            "h200-2",
            {"driver": None},
            "driver_unknown",
            "needs the driver 570.26 or newer: the version that it has is unknown",
        ),
        (
            "h200-2",
            {"driver": "570.124.06", "cuda": "12.2"},
            "cuda_too_old",
            "needs CUDA 12.8 or newer: the driver 570.124.06 supports 12.2; install driver >= 570.26",
        ),
        (
            "h200-2",
            {"cuda": None},
            "cuda_unknown",
            "needs CUDA 12.8 or newer: nvidia-smi does not report what the driver 580.159.03",
        ),
        (
            "h200-2",
            {"ecc_uncorrected": 3},
            "ecc_errors",
            "has 3 uncorrected memory errors (ECC): restart the host, and replace",
        ),
        ("mi300x-2", {"ecc_uncorrected": 1}, "ecc_errors", "has 1 uncorrected memory errors"),
        (
            "h200-2",
            {"xid": [31, 79]},
            "xid_errors",
            "its kernel has logged Xid 79 (GPU has fallen off the bus): restart the host, and replace the GPU",
        ),
        (
            "mi300x-2",
            {**NOTHING, "problems": {"amd": {"state": "no_driver", "why": "rocm-smi and amd-smi not found"}}},
            "no_driver",
            "rocm-smi and amd-smi not found: install the driver, 6.12 or newer, and ROCm 7.0 or newer",
        ),
        ("mi300x-2", {"rocm": "6.4.1"}, "rocm_too_old", "needs ROCm 7.0 or newer: it has 6.4.1; install ROCm >= 7.0"),
        (
            "mi300x-2",
            {"rocm": None},
            "no_rocm",
            "needs ROCm 7.0 or newer: /opt/rocm has none; install ROCm >= 7.0",
        ),
        ("mi300x-2", {"driver": "6.8.5"}, "driver_too_old", "needs the driver 6.12 or newer: it has 6.8.5"),
        (
            "mi300x-2",
            {"glibc": "2.31"},
            "glibc_too_old",
            "needs glibc 2.35 or newer: it has 2.31; use a newer release of the operating",
        ),
    ],
)
def test_a_veto(catalog: Catalog, name: str, changes: dict[str, Any], code: str, says: str) -> None:
    (veto,) = judge(catalog, name, changes)
    assert veto.code == code
    assert says in veto.text


def test_all_that_is_wrong_is_said_at_once(catalog: Catalog) -> None:
    changes = {"gpus": [H200], "driver": "535.183.01", "cuda": "12.2", "xid": [79]}
    assert len(judge(catalog, "h200-2", changes)) == 4


def test_a_class_without_a_gpu_asks_for_no_gpu(catalog: Catalog) -> None:
    wanted = wanted_facts(catalog.host_class("cpu-2"))
    assert not [key for key in wanted if key.startswith("gpu")]
    assert vetoes.find_vetoes(wanted, {}) == ()


def test_the_higher_floor_of_class_and_engine_counts(catalog: Catalog) -> None:
    sized = catalog.host_class("mi300x-8")
    wanted = wanted_facts(sized, {"python": ["3.12"], "glibc_min": "2.35", "rocm_min": "7.10"})
    assert (wanted["rocm_min"], wanted["glibc_min"], wanted["gpu_count"]) == ("7.10", "2.35", 8)
    assert wanted["python"] == ["3.12"]
    assert wanted_facts(sized, {"rocm_min": "6.3"})["rocm_min"] == "7.0"


def probed(root: Path, host: gpu.Gpus, facts: Mapping[str, Any]) -> probing.Report:
    """The report of the program that goes to hosts, run here with the tools of another host."""
    write_files(root, gpu.files(host))
    path = f"{root / 'usr/local/bin'}:{os.environ['PATH']}"
    manifest = Manifest("gpu-0", (), facts)
    command = probing.remote_command("root", manifest).replace("/usr/bin/python3", sys.executable)
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env={"PATH": path, "ROCM_PATH": str(root / "opt/rocm")},
        input=probing.probe_input(manifest),
        capture_output=True,
        text=True,
        check=True,
    )
    return probing.parse_report("gpu-0", manifest, done.stdout)


def test_the_probe_reads_the_facts_of_a_host_with_gpus(tmp_path: Path, catalog: Catalog) -> None:
    wanted = wanted_facts(catalog.host_class("h200-8"))
    found = probed(tmp_path, gpu.gpus("h200-8"), wanted)
    assert found.veto == ()
    assert (found.facts["driver"], len(found.facts["gpus"])) == ("580.159.03", 8)


def test_the_fault_names_the_host(tmp_path: Path, catalog: Catalog) -> None:
    wanted = wanted_facts(catalog.host_class("h200-8"))
    found = probed(tmp_path, replace(gpu.gpus("h200-8"), count=7), wanted)
    (fault,) = drift.blocking_errors({"gpu-0": found})
    assert (fault.host, fault.code, fault.exit_code) == ("gpu-0", "refused", 2)
    assert "has 7 GPUs, its class has 8" in fault.message


def test_no_tool_is_asked_on_a_host_without_gpus(tmp_path: Path, catalog: Catalog) -> None:
    wanted = {"machine": os.uname().machine}
    assert probed(tmp_path, gpu.gpus("h200-8"), wanted).facts == {}
    assert len(probing.remote_command("root", Manifest("a", (), wanted))) < len(
        probing.remote_command("root", Manifest("a", (), wanted_facts(catalog.host_class("h200-8"))))
    )


def test_facts_are_json_for_later_steps(tmp_path: Path, catalog: Catalog) -> None:
    found = probed(tmp_path, gpu.gpus("mi300x-8"), wanted_facts(catalog.host_class("mi300x-8")))
    assert json.loads(json.dumps(dict(found.facts)))["mec_firmware"] == 185
