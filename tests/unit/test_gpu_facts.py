"""What tools of the vendors print, and the facts that are read from it. Outputs are shortened."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_fleet.edge import ssh
from vllm_fleet.on_host import gpu_facts, host_tools

H200 = {"name": "NVIDIA H200", "memory_mib": 143771, "arch": "sm_90"}
#: The fields of a row, without those that only newer drivers know.
FIELDS = gpu_facts.NVIDIA_FIELDS[:5]

MI300X_ROCM_SMI = """\
WARNING: AMD GPU device(s) is/are in a low-power state. Check power control/runtime_status

{"card0": {"VRAM Total Memory (B)": "206141652992", "VRAM Total Used Memory (B)": "301989888",
"MEC firmware version": "0x000000b1", "MEC2 firmware version": "177", "Card Series": "AMD Instinct MI300X",
"Card Model": "0x74a1", "Card Vendor": "Advanced Micro Devices, Inc. [AMD/ATI]", "GFX Version": "gfx942"},
"card10": {"VRAM Total Memory (B)": "206141652992", "MEC firmware version": "166", "Card Series": "N/A",
"Device Name": "AMD Instinct MI300X", "GFX Version": "gfx942"},
"system": {"Driver version": "6.10.5"}}
"""
# The list is the form up to release 6.4, the mapping that of later ones.
MI300X_AMD_SMI = [
    {
        "gpu": 0,
        "asic": {"market_name": "AMD Instinct MI300X", "vendor_id": "0x1002", "target_graphics_version": "gfx942"},
        "vram": {"type": "HBM3", "size": {"value": 196592, "unit": "MB"}},
        "driver": {"name": "amdgpu", "version": "6.19.14"},
    }
]
# unverified: the firmware list was read in a test of another project only.
MI300X_FIRMWARE = [
    {"gpu": 0, "fw_list": [{"fw_id": "RLC", "fw_version": "65"}, {"fw_id": "CP_MEC1", "fw_version": "177"}]}
]


#: What a row says of MIG, the fabric and the recovery of a healthy GPU.
MODES = ", Disabled, Completed, None"


def tool(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host that has no tool but those that the test makes."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(host_tools, "MORE_FOLDER", str(tmp_path))
    monkeypatch.setattr(gpu_facts, "kfd_gpus", lambda: ([], []))
    return tmp_path


@pytest.mark.parametrize(
    ("row", "gpu", "errors"),
    [
        ("NVIDIA H200, 143771, 9.0, 580.159.03, 0", H200, 0),
        ("NVIDIA H200, 143771, 9.0, 580.159.03, 3", H200, 3),
        (
            "NVIDIA GeForce RTX 5090, 32607, 12.0, 580.159.03, [N/A]",
            {"name": "NVIDIA GeForce RTX 5090", "memory_mib": 32607, "arch": "sm_120"},
            None,
        ),
        (
            "NVIDIA GB10, [N/A], 12.1, 580.159.03, [N/A]",
            {"name": "NVIDIA GB10", "memory_mib": None, "arch": "sm_121"},
            None,
        ),
        (
            "[Unknown Error], [Unknown Error], [N/A], 580.159.03, [Unknown Error]",
            {"name": None, "memory_mib": None, "arch": None},
            None,
        ),
    ],
    ids=["h200", "ecc", "no-ecc", "shared-memory", "broken"],
)
def test_a_row_of_nvidia_smi(row: str, gpu: dict[str, Any], errors: int | None) -> None:
    assert gpu_facts.nvidia_gpus(f"{row}\n", FIELDS) == ([gpu], "580.159.03", errors)


@pytest.mark.parametrize(
    "header",
    [
        "| NVIDIA-SMI 580.159.03             Driver Version: 580.159.03     CUDA Version: 13.0     |",
        "| NVIDIA-SMI 610.57.04              KMD Version: 610.57.04     CUDA UMD Version: 13.0     |",
        "CUDA Version        : 13.0",
    ],
    ids=["header", "header-from-610", "version"],
)
def test_the_cuda_version_in_each_spelling(tools: Path, header: str) -> None:
    row = "NVIDIA H200, 143771, 9.0, 580.159.03, 0" + MODES
    tool(tools, "nvidia-smi", f"[ $# -eq 0 ] && echo '{header}' || echo '{row}'")
    assert gpu_facts.read_facts()["cuda"] == "13.0"


def test_what_an_old_driver_cannot_say_is_unknown(tools: Path) -> None:
    unknown = ("compute_cap", "mig.mode.current", "fabric.state", "gpu_recovery_action")
    refusals = [f"*{name}*) echo 'Field \"{name}\" is not a valid field to query.'; exit 2;;" for name in unknown]
    tool(
        tools,
        "nvidia-smi",
        "\n".join(['case "$1" in', *refusals, "--query-gpu*) echo 'A100, 40960, 470.57, 0';;", "esac"]),
    )
    facts = gpu_facts.read_facts()
    assert facts["gpus"] == [{"name": "A100", "memory_mib": 40960, "arch": None}]
    assert (facts["driver"], facts["cuda"], facts["ecc_uncorrected"]) == ("470.57", None, 0)


def test_xid_errors_are_read_from_the_kernel_log(tools: Path) -> None:
    tool(tools, "nvidia-smi", f"echo 'NVIDIA H200, 143771, 9.0, 580.159.03, 0{MODES}'")
    tool(tools, "dmesg", "echo 'dmesg: read kernel buffer failed: Operation not permitted' >&2; exit 1")
    assert gpu_facts.read_facts()["xid"] is None
    line = "NVRM: Xid (PCI:0000:3b:00): %s, pid=4, name=python3, and more"
    tool(tools, "journalctl", "\n".join(f"echo '{line % code}'" for code in (79, 31, 79)))
    assert gpu_facts.read_facts()["xid"] == [31, 79]
    tool(tools, "dmesg", "echo 'NVRM: loading NVIDIA UNIX Open Kernel Module'")
    assert gpu_facts.read_facts()["xid"] == []


@pytest.mark.parametrize(
    ("body", "state", "why"),
    [
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
            "driver_mismatch",
            "Driver/library version mismatch",
        ),
        (
            'echo "NVIDIA-SMI has failed because it couldn\'t communicate with the NVIDIA driver."; exit 9',
            "driver_not_loaded",
            "communicate",
        ),
        ("echo 'No devices were found'; exit 6", "no_gpus", "No devices were found"),
        ("exit 7", "tool_failed", "exit status 7"),
        ("exit 0", "no_gpus", "lists no GPU"),
    ],
    ids=["mismatch", "no-driver", "no-devices", "silent", "empty"],
)
def test_a_tool_that_fails_says_why(tools: Path, body: str, state: str, why: str) -> None:
    tool(tools, "nvidia-smi", body)
    facts = gpu_facts.read_facts("nvidia")
    assert (facts["vendor"], facts["gpus"], facts["driver"]) == (None, [], None)
    assert facts["problems"]["nvidia"]["state"] == state
    assert why in facts["problems"]["nvidia"]["why"]


def test_nobody_waits_for_a_tool_that_hangs(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_tools, "TOOL_SECONDS", 0.2)
    tool(tools, "nvidia-smi", "exec /bin/sleep 20")
    problem = gpu_facts.read_facts()["problems"]["nvidia"]
    assert problem == {"state": "tool_hangs", "why": "nvidia-smi gives no answer within 0 s"}


def test_a_host_without_tools(tools: Path) -> None:
    facts = gpu_facts.read_facts()
    assert facts["problems"] == {
        "nvidia": {"state": "no_driver", "why": "nvidia-smi not found"},
        "amd": {"state": "no_driver", "why": "rocm-smi and amd-smi not found"},
    }


@pytest.mark.parametrize(
    ("rocm_smi", "amd_smi", "state", "why"),
    [
        ("echo broken; exit 3", None, "tool_failed", "rocm-smi says: broken"),
        (None, "echo broken; exit 3", "tool_failed", "amd-smi says: broken"),
        ("exit 0", None, "no_gpus", "rocm-smi lists no GPU: its list is empty"),
        (None, "exit 0", "no_gpus", "amd-smi lists no GPU: its list is empty"),
    ],
    ids=["rocm-fails", "amd-fails", "rocm-empty", "amd-empty"],
)
def test_a_tool_of_amd_that_fails_is_not_a_missing_driver(
    tools: Path, rocm_smi: str | None, amd_smi: str | None, state: str, why: str
) -> None:
    for name, body in (("rocm-smi", rocm_smi), ("amd-smi", amd_smi)):
        if body:
            tool(tools, name, body)
    assert gpu_facts.read_facts("amd")["problems"]["amd"] == {"state": state, "why": why}


def test_a_host_without_tools_reports_itself(tools: Path) -> None:
    facts = gpu_facts.read_facts()
    assert facts["machine"] == os.uname().machine
    assert facts["cpu_count"] >= 1
    assert facts["memory_gib"] > 0
    assert facts["os"]["id"]


def test_the_cards_of_rocm_smi_in_their_order() -> None:
    gpu = {"name": "AMD Instinct MI300X", "memory_mib": 196592, "arch": "gfx942"}
    assert gpu_facts.rocm_smi_gpus(MI300X_ROCM_SMI) == ([gpu, gpu], "6.10.5", 166)


@pytest.mark.parametrize("text", ["", "not json", "[]", "{}", '{"card0"', '{"system": {}}'])
def test_what_is_no_list_of_cards_is_none(text: str) -> None:
    assert gpu_facts.rocm_smi_gpus(text) == ([], None, None)
    assert gpu_facts.amd_smi_gpus(text, text) == ([], None, None)


@pytest.mark.parametrize("static", [MI300X_AMD_SMI, {"gpu_data": MI300X_AMD_SMI}], ids=["list", "mapping"])
def test_the_gpus_of_amd_smi(static: Any) -> None:
    gpu = {"name": "AMD Instinct MI300X", "memory_mib": 196592, "arch": "gfx942"}
    found = gpu_facts.amd_smi_gpus(json.dumps(static), json.dumps(MI300X_FIRMWARE))
    assert found == ([gpu], "6.19.14", 177)


@pytest.mark.parametrize(
    ("version", "arch"), [(90402, "gfx942"), (90500, "gfx950"), (90010, "gfx90a"), (120001, "gfx1201"), (0, None)]
)
def test_the_kernel_names_architecture_and_firmware(tmp_path: Path, version: int, arch: str | None) -> None:
    node = tmp_path / "1"
    node.mkdir()
    (node / "properties").write_text(
        f"simd_count 304\ngfx_target_version {version}\nfw_version 185\n", encoding="utf-8"
    )
    assert gpu_facts.kfd_gpus(str(tmp_path)) == (([arch], [185]) if arch else ([], []))


def test_uncorrectable_errors_of_amd(tmp_path: Path) -> None:
    pattern = str(tmp_path / "card*" / "umc_err_count")
    assert gpu_facts.read_ras(pattern) is None
    for number, errors in enumerate((0, 2)):
        folder = tmp_path / f"card{number}"
        folder.mkdir()
        (folder / "umc_err_count").write_text(f"ue: {errors}\nce: 5\n", encoding="utf-8")
    assert gpu_facts.read_ras(pattern) == 2


def test_the_version_of_rocm_without_its_build(tmp_path: Path) -> None:
    assert gpu_facts.read_rocm(str(tmp_path)) is None
    (tmp_path / ".info").mkdir()
    (tmp_path / ".info" / "version").write_text("7.0.2-56\n", encoding="utf-8")
    assert gpu_facts.read_rocm(str(tmp_path)) == "7.0.2"


def test_it_runs_as_it_is_sent_with_the_standard_library_alone() -> None:
    (source,) = shlex.split(ssh.pack_program("gpu_facts"))
    done = subprocess.run([sys.executable, "-IS", "-c", source], capture_output=True, text=True, check=True)
    assert {"vendor", "gpus", "driver", "machine", "problems"} <= set(json.loads(done.stdout))
