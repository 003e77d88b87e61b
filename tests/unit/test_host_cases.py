"""Hosts in states that public reports show: what the program there reports, and what the controller says to do."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from healthy_host import H100, HEALTHY

from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.edge import ssh
from vllm_fleet.facts import vetoes
from vllm_fleet.facts.host_answer import HostFacts
from vllm_fleet.facts.recognise import recognise
from vllm_fleet.fleet import host_facts
from vllm_fleet.host import drivers
from vllm_fleet.host.manifest import wanted_facts
from vllm_fleet.operate.probing import parse_facts

#: A row for each GPU, as nvidia-smi answers the query of the facts.
ROW = "{name}, {mib}, {capability}, 580.159.03, 0, {mig}, {fabric}, {recovery}"
H200 = {"name": "NVIDIA H200", "mib": 143771, "capability": "9.0", "mig": "Disabled"}
AMD_STATIC = {
    "gpu": 0,
    "asic": {"market_name": "AMD Instinct MI300X VF", "target_graphics_version": "gfx942"},
    "vram": {"type": "HBM3", "size": {"value": 196288, "unit": "MB"}},
    "driver": {"name": "amdgpu", "version": "6.14.14"},
}


def facts_of(folder: Path, **tools: str) -> dict[str, Any]:
    """The facts of a host with these tools, as the program that is sent to hosts prints them."""
    for name, body in tools.items():
        tool = folder / name.replace("_", "-")
        tool.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        tool.chmod(0o755)
    (source,) = shlex.split(ssh.pack_program("gpu_facts"))
    done = subprocess.run(
        [sys.executable, "-IS", "-c", source],
        env={"PATH": f"{folder}:/usr/bin:/bin", "ROCM_PATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    # As the controller reads them.
    return dict(parse_facts(done.stdout))


def nvidia_smi(*rows: Mapping[str, Any]) -> str:
    lines = [ROW.format(**{"fabric": "Completed", "recovery": "None", **row}) for row in rows]
    printed = " ".join(shlex.quote(line) for line in lines)
    return f"case \"$1\" in --query-gpu*) printf '%s\\n' {printed};; '') echo 'CUDA Version: 13.0';; *) exit 2;; esac"


def wanted(catalog: Catalog, host_class: str, mode: drivers.DriverMode = "managed") -> dict[str, Any]:
    """What a host of a class must be, with its driver."""
    sized = catalog.host_class(host_class)
    driver = drivers.choose_driver(catalog, sized, drivers.DriverChoice(mode=mode))
    assert driver
    return {**wanted_facts(sized), **driver.facts}


def judge(
    catalog: Catalog, host_class: str, facts: Mapping[str, Any], mode: drivers.DriverMode = "managed"
) -> dict[str, str]:
    """Code of each veto -> its text."""
    return {veto.code.value: veto.text for veto in vetoes.find_vetoes(wanted(catalog, host_class, mode), facts)}


def repairs(catalog: Catalog, host_class: str, facts: Mapping[str, Any]) -> list[str]:
    return [fault.code.value for fault in vetoes.find_repairs(wanted(catalog, host_class), facts)]


# -- MIG and partitions -------------------------------------------------------------------------------------------


def test_gpus_in_mig_mode_stop_a_run(catalog: Catalog, tmp_path: Path) -> None:
    """StableSwarmUI#388: nvidia-smi shows the whole memory of a GPU in MIG mode."""
    facts = facts_of(
        tmp_path, nvidia_smi=nvidia_smi(*[{**H200, "mig": "Enabled"}] * 8), nv_fabricmanager="echo 580.159.03"
    )
    assert facts["mig_gpus"] == 8
    found = judge(catalog, "h200-8", facts)
    assert list(found) == ["mig_enabled"]
    assert "8 GPUs of 8 in MIG mode" in found["mig_enabled"]
    assert "nvidia-smi -mig 0" in found["mig_enabled"]
    healthy = facts_of(tmp_path, nvidia_smi=nvidia_smi(*[H200] * 8))
    assert judge(catalog, "h200-8", healthy) == {}


def test_partitions_of_amd_stop_a_run(catalog: Catalog) -> None:
    gpu = {"name": "AMD Instinct MI300X", "memory_mib": 24574, "arch": "gfx942"}
    facts = {"vendor": "amd", "gpus": [gpu] * 64, "driver": "6.14.14", "rocm": "7.0.2", "glibc": "2.39"}
    found = judge(catalog, "mi300x-8", {**facts, "compute_partitions": ["CPX"], "memory_partitions": ["NPS4"]})
    assert list(found) == ["gpu_partitioned"]
    assert "CPX, NPS4" in found["gpu_partitioned"]
    assert "'amd-smi set --compute-partition SPX' and 'amd-smi set --memory-partition NPS1'" in found["gpu_partitioned"]
    whole = {
        **facts,
        "gpus": [{**gpu, "memory_mib": 196592}] * 8,
        "compute_partitions": ["SPX"],
        "memory_partitions": ["NPS1"],
    }
    assert judge(catalog, "mi300x-8", whole) == {}


# -- Values that are not there ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("static", "firmware", "gpu"),
    [
        (
            {"gpu_data": [AMD_STATIC]},
            {"gpu_data": [{"gpu": 0, "fw_list": "N/A"}]},
            {"name": "AMD Instinct MI300X VF", "memory_mib": 196288, "arch": "gfx942"},
        ),
        ([{**AMD_STATIC, "asic": "N/A"}], [], {"name": None, "memory_mib": 196288, "arch": None}),
        (
            [{**AMD_STATIC, "vram": None, "driver": "N/A"}],
            {},
            {"name": "AMD Instinct MI300X VF", "memory_mib": None, "arch": "gfx942"},
        ),
    ],
    ids=["no firmware", "no asic", "no memory"],
)
def test_a_section_that_is_not_there_is_unknown(tmp_path: Path, static: Any, firmware: Any, gpu: Any) -> None:
    """ROCm/amdsmi#134: "N/A" in place of a whole section."""
    answers = f"static) echo {shlex.quote(json.dumps(static))};; firmware) echo {shlex.quote(json.dumps(firmware))};;"
    facts = facts_of(tmp_path, amd_smi=f'case "$1" in {answers} esac')
    assert (facts["vendor"], facts["gpus"], facts["mec_firmware"]) == ("amd", [gpu], None)


# -- A tool that fails, and a driver that is not there ------------------------------------------------------------

LOST = "echo 'Unable to determine the device handle for GPU0000:65:00.0: Unknown Error'; exit 15"
FELL_OFF = "NVRM: Xid (PCI:0000:65:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


def test_a_lost_gpu_is_not_repaired_by_a_driver(catalog: Catalog, tmp_path: Path) -> None:
    """open-gpu-kernel-modules#387, dcgm-exporter#604."""
    facts = facts_of(tmp_path, nvidia_smi=LOST, dmesg=f"echo {shlex.quote(FELL_OFF)}")
    assert facts["problems"]["nvidia"]["state"] == "gpu_lost"
    assert facts["xid"] == [79]
    for mode in ("managed", "verified"):
        found = judge(catalog, "h100-8", facts, mode)
        assert list(found) == ["gpu_lost", "xid_errors"]
        assert "restart the host; open a ticket" in found["gpu_lost"]
        assert "Xid 79 (GPU has fallen off the bus)" in found["xid_errors"]
    assert repairs(catalog, "h100-8", facts) == []


@pytest.mark.parametrize(
    ("state", "loaded", "repaired"),
    [
        ("no_driver", None, True),
        ("driver_not_loaded", None, True),
        ("driver_mismatch", {"nvidia": "570.195.03"}, True),
        ("tool_failed", {"nvidia": None}, True),
        ("tool_failed", {"nvidia": "580.159.03"}, False),
        ("no_gpus", {"nvidia": "580.159.03"}, False),
        ("tool_hangs", {"nvidia": "unknown"}, False),
        ("gpu_lost", None, False),
        ("gpu_lost", {"nvidia": None}, False),
    ],
)
def test_a_driver_is_installed_only_where_it_can_be_missing(
    catalog: Catalog, state: str, loaded: dict[str, str | None] | None, repaired: bool
) -> None:
    facts = {"vendor": None, "gpus": [], "problems": {"nvidia": {"state": state, "why": "x"}}, "kernel_driver": loaded}
    assert (repairs(catalog, "h100-8", facts) == [state]) is repaired
    assert (state in judge(catalog, "h100-8", facts)) is not repaired


@pytest.mark.parametrize(
    ("listed", "is_there"), [(None, True), ({"10de:2330": 8}, True), ({}, False), ({"1002:164e": 1}, False)]
)
def test_no_driver_is_installed_for_gpus_that_are_not_on_the_bus(
    catalog: Catalog, listed: dict[str, int] | None, is_there: bool
) -> None:
    problems = {"nvidia": {"state": "no_driver", "why": "nvidia-smi not found"}}
    facts = {"vendor": None, "gpus": [], "problems": problems, "pci_gpus": listed}
    assert repairs(catalog, "h100-8", facts) == (["no_driver"] if is_there else [])
    assert list(judge(catalog, "h100-8", facts)) == ([] if is_there else ["no_gpu_on_bus"])
    assert list(judge(catalog, "h100-8", facts, "verified")) == ["no_driver" if is_there else "no_gpu_on_bus"]


def test_a_hardware_error_is_not_repaired_by_a_driver_either(catalog: Catalog) -> None:
    errors = [
        {"kind": kind, "code": 79 * (kind == "xid"), "device": "0000:65:00", "detail": ""}
        for kind in ("xid", "rm_init")
    ]
    facts = {"vendor": None, "gpus": [], "problems": {"nvidia": {"state": "driver_mismatch", "why": "x"}}}
    assert list(judge(catalog, "h100-8", {**facts, "gpu_errors": errors})) == ["xid_errors"]
    # A driver that is too old for a GPU cannot start it.
    assert judge(catalog, "h100-8", {**facts, "gpu_errors": errors[1:]}) == {}


def test_a_driver_version_that_is_an_error_is_unknown(catalog: Catalog, tmp_path: Path) -> None:
    rows = "NVIDIA H200, 143771, 9.0, ERR!, ERR!, ERR!, ERR!, ERR!"
    facts = facts_of(tmp_path, nvidia_smi=f"case \"$1\" in --query-gpu*) echo '{rows}';; esac")
    assert (facts["driver"], facts["ecc_uncorrected"], facts["fabric_states"]) == (None, None, [])


# -- What the driver has logged -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        ({"kind": "xid", "code": 79}, "xid_errors", "Xid 79 (GPU has fallen off the bus): restart the host"),
        ({"kind": "xid", "code": 48}, "xid_errors", "Xid 48 (Double bit ECC error)"),
        ({"kind": "xid", "code": 64}, "xid_errors", "Xid 64"),
        ({"kind": "xid", "code": 74}, "xid_errors", "Xid 74"),
        ({"kind": "xid", "code": 95}, "xid_errors", "Xid 95"),
        ({"kind": "xid", "code": 119}, "xid_errors", "Xid 119 (GSP RPC timeout)"),
        ({"kind": "xid", "code": 140}, "xid_errors", "Xid 140"),
        ({"kind": "xid", "code": 149, "detail": "fatal"}, "xid_errors", "Xid 149 (NVLink NETIR error)"),
        (
            {"kind": "xid", "code": 154, "detail": "Node Reboot Required"},
            "xid_errors",
            "asks for: Node Reboot Required",
        ),
        ({"kind": "xid", "code": 154, "detail": "Something New"}, "xid_errors", "asks for: Something New"),
        ({"kind": "sxid", "code": 20034, "detail": "fatal"}, "sxid_errors", "SXid 20034 (LTSSM Fault Up)"),
        ({"kind": "sxid", "code": 22003, "detail": ""}, "sxid_errors", "SXid 22003 (Minion Halt)"),
        ({"kind": "sxid", "code": 99999, "detail": "fatal"}, "sxid_errors", "SXid 99999"),
    ],
)
def test_an_error_of_the_hardware_stops_a_run(catalog: Catalog, error: dict[str, Any], code: str, says: str) -> None:
    logged = [{"device": "0000:65:00", "detail": "", **error}]
    found = judge(catalog, "h100-8", {**HEALTHY, "gpu_errors": logged})
    assert list(found) == [code]
    assert says in found[code]


@pytest.mark.parametrize(
    "error",
    [
        *({"kind": "xid", "code": code} for code in (13, 31, 43, 45, 63, 92, 94, 121, 999)),
        {"kind": "xid", "code": 145, "detail": "nonfatal"},
        {"kind": "xid", "code": 154, "detail": "None"},
        {"kind": "sxid", "code": 12028, "detail": "nonfatal"},
        {"kind": "sxid", "code": 11012, "detail": ""},
        {"kind": "rm_init", "code": 0},
        {"kind": "off_bus", "code": 0},
    ],
    ids=lambda error: f"{error['kind']}-{error['code']}-{error.get('detail', '')}",
)
def test_an_error_of_a_program_stops_nothing(catalog: Catalog, error: dict[str, Any]) -> None:
    logged = [{"device": "0000:65:00", "detail": "", **error}]
    assert judge(catalog, "h100-8", {**HEALTHY, "gpu_errors": logged}) == {}


@pytest.mark.parametrize(
    ("facts", "code", "says"),
    [
        ({"recovery_actions": ["Reset"]}, "recovery_needed", "asks for an action on a GPU (Reset): restart the host"),
        ({"remap_pending": 2}, "rows_pending", "rows of the memory of 2 GPUs wait for a reset"),
        ({"remap_failed": 1}, "rows_failed", "1 GPU cannot remap broken rows of memory any more: replace the GPU"),
        (
            {"gpus": [H100] * 7, "gpu_errors": [{"kind": "rm_init", "code": 0, "device": "0000:18:00", "detail": ""}]},
            "adapter_failed",
            "its driver cannot start the GPU at 0000:18:00 (RmInitAdapter failed)",
        ),
    ],
    ids=["recovery", "pending", "failed", "adapter"],
)
def test_what_the_driver_asks_for_stops_a_run(catalog: Catalog, facts: dict[str, Any], code: str, says: str) -> None:
    found = judge(catalog, "h100-8", {**HEALTHY, **facts})
    assert says in found[code]


# -- Switches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "memory", "sized"),
    [
        ("NVIDIA H100 PCIe", 81559, "h100-pcie-8"),
        ("NVIDIA H100 NVL", 95830, "h100-nvl-8"),
        ("NVIDIA H200 NVL", 143771, "h200-nvl-8"),
    ],
)
def test_cards_without_switches_need_no_fabric_manager(catalog: Catalog, name: str, memory: int, sized: str) -> None:
    """gpu-operator#610, gpud#1206. Who calls eight cards eight on a board is asked for no fabric manager either."""
    gpu = {**H100, "name": name, "memory_mib": memory}
    facts = {**HEALTHY, "gpus": [gpu] * 8, "fabric_manager": None, "nvswitches": 0}
    assert recognise(facts, catalog).id == sized
    assert judge(catalog, sized, facts, "verified") == {}
    facts["gpus"] = [{**H100, "name": "NVIDIA H100 PCIe"}] * 8
    assert judge(catalog, "h100-8", facts, "verified") == {}
    assert repairs(catalog, "h100-8", facts) == []
    for switches, unit in ((0, False), (4, True), (None, True)):
        choice = drivers.DriverChoice(mode="managed", nvswitches=switches)
        driver = drivers.choose_driver(catalog, catalog.host_class("h100-8"), choice)
        assert driver
        assert driver.variables["nvidia_driver_fabric_manager"] is unit
        assert any("fabricmanager" in package for package in driver.packages("ubuntu-24.04")) is unit
        assert any(item.get("name") == "nvidia-fabricmanager.service" for item in driver.items) is unit


def test_a_board_with_switches_still_needs_its_fabric_manager(catalog: Catalog) -> None:
    facts = {**HEALTHY, "fabric_manager": None, "nvswitches": 4}
    assert "no_fabric_manager" in judge(catalog, "h100-8", facts, "verified")


def test_gpus_that_a_network_outside_has_not_taken_up_stop_a_run(catalog: Catalog) -> None:
    gpu = {"name": "NVIDIA GB200", "memory_mib": 189471, "arch": "sm_100"}
    facts = {**HEALTHY, "gpus": [gpu] * 4, "fabric_manager": None, "nvswitches": 0}
    assert list(judge(catalog, "gb200-4", {**facts, "fabric_states": ["In Progress"]}, "verified")) == [
        "fabric_not_ready"
    ]
    assert judge(catalog, "gb200-4", {**facts, "fabric_states": ["Completed"]}, "verified") == {}
    # It is nothing that a role repairs.
    assert "fabric_not_ready" in judge(catalog, "gb200-4", {**facts, "fabric_states": ["In Progress"]})
    assert repairs(catalog, "gb200-4", {**facts, "fabric_states": ["In Progress"]}) == []


def test_the_number_of_switches_reaches_the_next_plan() -> None:
    assert "nvswitches" in host_facts.ASKED


# -- Kernel, Secure Boot and nouveau ------------------------------------------------------------------------------

NO_DRIVER = {"vendor": None, "gpus": [], "problems": {"nvidia": {"state": "no_driver", "why": "nvidia-smi not found"}}}
NO_AMD_DRIVER = {"vendor": None, "gpus": [], "problems": {"amd": {"state": "no_driver", "why": "amd-smi not found"}}}


def test_a_driver_that_secure_boot_would_refuse_is_not_installed(catalog: Catalog) -> None:
    refused = judge(catalog, "h100-8", {**NO_DRIVER, "secure_boot": True, "module_key_enrolled": None})
    assert list(refused) == ["secure_boot"]
    assert "mokutil --import" in refused["secure_boot"]
    for state in ({"secure_boot": True, "module_key_enrolled": True}, {"secure_boot": False}, {"secure_boot": None}):
        assert judge(catalog, "h100-8", {**NO_DRIVER, **state}) == {}
    # A driver that is there and right was accepted by the firmware.
    assert judge(catalog, "h100-8", {**HEALTHY, "secure_boot": True}) == {}
    assert "secure_boot" in judge(catalog, "h100-8", {**HEALTHY, "driver": "570.195.03", "secure_boot": True})
    # The fabric manager is no module of the kernel.
    assert judge(catalog, "h100-8", {**HEALTHY, "fabric_manager": None, "secure_boot": True}) == {}


@pytest.mark.parametrize(
    ("kernels", "says"),
    [
        ({"kernel": "6.17.0-6-generic"}, "and the host runs 6.17.0-6-generic"),
        (
            {"kernel": "6.14.0-37-generic", "next_kernel": "6.17.0-8-generic"},
            "and the host boots next 6.17.0-8-generic",
        ),
        ({"kernel": "6.14.0-37-generic", "next_kernel": "6.14.0-37-generic"}, None),
        ({"kernel": "6.8.0-51-generic", "next_kernel": None}, None),
    ],
)
def test_a_kernel_that_the_driver_does_not_build_for(
    catalog: Catalog, kernels: dict[str, Any], says: str | None
) -> None:
    found = judge(catalog, "mi300x-8", {**NO_AMD_DRIVER, **kernels})
    assert (says in found["kernel_too_new"]) if says else found == {}


def test_a_newer_kernel_without_a_driver_stops_a_run_before_the_restart(catalog: Catalog) -> None:
    kernels = {"kernel": "6.8.0-51-generic", "next_kernel": "6.8.0-60-generic"}
    missing = {**HEALTHY, **kernels, "next_kernel_driver": {"nvidia": False, "amd": False}}
    for mode in ("managed", "verified"):
        found = judge(catalog, "h100-8", missing, mode)
        assert list(found) == ["no_kernel_driver"]
        assert "linux-headers-6.8.0-60-generic" in found["no_kernel_driver"]
    assert judge(catalog, "h100-8", {**missing, "next_kernel_driver": {"nvidia": True, "amd": False}}) == {}
    assert judge(catalog, "h100-8", {**missing, "next_kernel_driver": None}) == {}


def test_nouveau_is_named_where_no_role_installs_a_driver(catalog: Catalog) -> None:
    found = judge(catalog, "h100-8", {**NO_DRIVER, "nouveau": True}, "verified")
    assert list(found) == ["no_driver", "nouveau_loaded"]
    assert "blacklist nouveau" in found["nouveau_loaded"]
    assert judge(catalog, "h100-8", {**NO_DRIVER, "nouveau": True}) == {}


def test_no_tool_can_end_or_flood_the_program(tmp_path: Path) -> None:
    endless, junk = "exec yes '{\"card0\": [[[['", "exec head -c 3000000 /dev/urandom"
    log = f"yes {shlex.quote(FELL_OFF)} | head -c 40000000"
    facts = facts_of(tmp_path, nvidia_smi=endless, rocm_smi=endless, amd_smi=junk, dmesg=log, mokutil=junk)
    assert facts["vendor"] is None
    assert facts["problems"]["nvidia"] == {"state": "tool_failed", "why": "nvidia-smi says: more than 4 MiB of output"}
    assert facts["xid"] == [79]


def test_the_facts_of_this_machine_are_known_or_none(tmp_path: Path) -> None:
    facts = facts_of(tmp_path)
    assert (facts["kernel"] is None) is facts["container"]
    assert facts["kernel"] in (None, os.uname().release)
    assert facts["cloud_init"] in ("none", "disabled", "running", "done", "error")
    assert set(facts["docker"]) == {"package", "version"}


def test_every_fact_is_in_the_record_of_the_controller_and_the_other_way_round(tmp_path: Path) -> None:
    facts = facts_of(tmp_path)
    assert set(facts) == set(HostFacts.model_fields)
    read = HostFacts.model_validate_json(json.dumps(facts)).model_dump(mode="json")
    assert read == facts
