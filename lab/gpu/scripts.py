"""The text of the stand-ins: plain shell, so that they need only ``/bin/sh``.

Their output has the form of published outputs of the real tools. ``unverified``: the exact words of
``amd-smi``'s refusal, and its firmware list on releases after 6.4.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from lab.gpu.model import Gpus
from vllm_fleet.on_host import gpu_facts

_NVIDIA_BROKEN_EXIT = 9
#: ``nvidia-modprobe``: the node of nvidia-uvm, a copy of /dev/null, as the real one creates it with ``-u``.
NVIDIA_MODPROBE = """\
for option in "$@"; do
    [ "$option" != -u ] || [ -e /dev/nvidia-uvm ] || mknod -m 666 /dev/nvidia-uvm c 1 3
done
"""
_RULE = "+" + "-" * 89 + "+"


def nvidia_smi(host: Gpus) -> str:
    """``nvidia-smi``: the query of the facts, the header, and an error for everything else."""
    if host.broken:
        return _script("nvidia-smi", {}, [f"printf '%s\\n' {shlex.quote(host.broken)}", f"exit {_NVIDIA_BROKEN_EXIT}"])
    ecc = "[N/A]" if host.ecc_uncorrected is None else "0"
    # The GPUs of a host without NVSwitches join no fabric.
    modes = ["Disabled", "Completed" if host.fabric_manager else "N/A", "None"]
    rows = [[host.name, str(host.memory_bytes >> 20), host.arch, host.driver, ecc, *modes] for _ in range(host.count)]
    if host.ecc_uncorrected:
        rows[0][4] = str(host.ecc_uncorrected)
    named = f"NVIDIA-SMI {host.driver:<22} Driver Version: {host.driver:<14} CUDA Version: {host.cuda:<8}"
    header = ["Tue Nov 24 05:00:00 2026", _RULE, f"| {named} |", _RULE]
    answers = {
        f"--query-gpu={','.join(gpu_facts.NVIDIA_FIELDS)} {gpu_facts.NVIDIA_FORMAT}": [", ".join(row) for row in rows],
        "": header,
        f"{gpu_facts.REMAPPED_ROWS} {gpu_facts.NVIDIA_FORMAT}": ["0, 0"] * host.count,
        "nvlink --status": [f"GPU {number}: {host.name} (UUID: GPU-{number})" for number in range(host.count)],
        "--query-gpu=driver_version --format=csv,noheader": [host.driver] * host.count,
    }
    refusal = [
        'case "$1" in',
        "--query-gpu=*) for field in $(IFS=,; printf '%s ' ${1#*=}); do",
        '    printf \'Field "%s" is not a valid field to query.\\n\\n\' "$field"; exit 2; done ;;',
        "esac",
        "printf '%s\\n' \"Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\" >&2",
        "exit 2",
    ]
    return _script("nvidia-smi", answers, refusal)


def fabric_manager(host: Gpus) -> str:
    """``nv-fabricmanager``: its version, and an error for everything else."""
    version_line = f"Fabric Manager version is : {host.fabric_manager}"
    return _script("nv-fabricmanager", {"--version": [version_line]}, ["exit 1"])


def dmesg(host: Gpus) -> str:
    """``dmesg``: a driver that was loaded, and the Xid errors that it reported."""
    lines = [f"[    9.431] NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  {host.driver}"]
    lines += [f"[ 7421.877] NVRM: Xid (PCI:0000:1b:00): {code}, pid='<unknown>', name=<unknown>" for code in host.xid]
    return _script("dmesg", {"": lines}, ["printf 'dmesg: bad usage\\n' >&2", "exit 1"])


def rocm_smi(host: Gpus) -> str:
    """``rocm-smi``: one JSON object with a key for each card, and an error for everything else."""
    card = {
        "VRAM Total Memory (B)": str(host.memory_bytes),
        "VRAM Total Used Memory (B)": "301989888",
        "MEC firmware version": str(host.mec),
        "MEC2 firmware version": str(host.mec),
        "Card Series": host.name,
        "Card Vendor": "Advanced Micro Devices, Inc. [AMD/ATI]",
        "GFX Version": host.arch,
    }
    cards: dict[str, Any] = {f"card{number}": card for number in range(host.count)}
    cards["system"] = {"Driver version": host.driver}
    words = " ".join(gpu_facts.ROCM_SMI)
    usage = ["printf '%s\\n' \"rocm-smi: error: unrecognized arguments: $*\" >&2", "exit 2"]
    answers = {words: [json.dumps(cards)], "--showdriverversion --json": [json.dumps({"system": cards["system"]})]}
    return _amd("rocm-smi", host, answers, usage)


def amd_smi(host: Gpus) -> str:
    """``amd-smi``: its static facts and its firmware list as JSON, and an error for everything else."""
    static = [
        {
            "gpu": number,
            "asic": {"market_name": host.name, "vendor_id": "0x1002", "target_graphics_version": host.arch},
            "driver": {"name": "amdgpu", "version": host.driver},
            "vram": {"size": {"value": host.memory_bytes >> 20, "unit": "MB"}},
        }
        for number in range(host.count)
    ]
    images = [{"fw_id": "CP_MEC1", "fw_version": str(host.mec)}, {"fw_id": "CP_MEC2", "fw_version": str(host.mec)}]
    firmware = [{"gpu": number, "fw_list": images} for number in range(host.count)]
    answers = {
        " ".join(gpu_facts.AMD_SMI_STATIC): [json.dumps({"gpu_data": static})],
        " ".join(gpu_facts.AMD_SMI_FIRMWARE): [json.dumps(firmware)],
    }
    usage = ["printf '%s\\n' \"Command '$1' is invalid. Run 'help' for more info.\" >&2", "exit 255"]
    return _amd("amd-smi", host, answers, usage)


def _amd(tool: str, host: Gpus, answers: Mapping[str, list[str]], refusal: list[str]) -> str:
    if host.broken:
        return _script(tool, {}, [f"printf '%s\\n' {shlex.quote(host.broken)} >&2", "exit 1"])
    return _script(tool, answers, refusal)


def _script(tool: str, answers: Mapping[str, list[str]], refusal: list[str]) -> str:
    """A script that compares all its arguments with each question."""
    lines = ["#!/bin/sh", f"# Stands in for {tool} on a lab host; no GPU is behind it.", 'case "$*" in']
    for question, answer in answers.items():
        printed = " ".join(shlex.quote(line) for line in answer)
        lines += [f"{shlex.quote(question)}) printf '%s\\n' {printed}; exit 0 ;;"]
    return "\n".join([*lines, "esac", *refusal]) + "\n"
