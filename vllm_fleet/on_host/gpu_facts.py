"""Runs on a host: writes the facts of its GPUs, its driver and the host itself as one JSON object.

Standard library only, for the Python that the host has (3.8 or later); it changes nothing. An unknown fact is ``null``.
:func:`read_facts` lists the keys. What a tool prints is text of a stranger: no output makes this program fail.
"""

from __future__ import annotations

import glob
import json
import os
import re
import sys
from typing import Any, Iterable

from vllm_fleet.on_host import host_tools, kernel_log, machine_facts
from vllm_fleet.on_host.host_tools import (
    Answer,
    as_list,
    as_mapping,
    parse_json,
    parse_number,
    parse_text,
    parse_version,
    read_file,
    run_tool,
    start_tool,
    wait_for_tool,
)

NVIDIA_FIELDS = (
    "name",
    "memory.total",
    "compute_cap",
    "driver_version",
    "ecc.errors.uncorrected.volatile.total",
    "mig.mode.current",
    "fabric.state",
    "gpu_recovery_action",
)
NVIDIA_FORMAT = "--format=csv,noheader,nounits"
#: Of each GPU, whether rows of its memory wait for a reset to be remapped, and whether no spare row was left.
REMAPPED_ROWS = "--query-remapped-rows=remapped_rows.pending,remapped_rows.failure"
#: Arguments of the tools of AMD.
ROCM_SMI = ("--showproductname", "--showmeminfo", "vram", "--showdriverversion", "--showfwinfo", "--json")
AMD_SMI_STATIC = ("static", "--asic", "--vram", "--driver", "--json")
AMD_SMI_FIRMWARE = ("firmware", "--json")
#: Graphics inside AMD's processors: the tools list them, no model runs on them.
INTEGRATED = frozenset(
    {"gfx902", "gfx909", "gfx90c", "gfx1033", "gfx1035", "gfx1036", "gfx1037"}
    | {"gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153"}
)
#: From driver 610 on the header reads "CUDA UMD Version".
_CUDA = re.compile(r"CUDA(?: UMD)? Version\s*:\s*(\d{1,4}\.\d{1,4})\b")
_VERSION = re.compile(r"\d{1,9}(?:\.\d{1,9}){1,4}")
_INVALID_FIELD = re.compile(r'Field "([^"\n]{1,80})" is not a valid field to query')
_LINK = re.compile(r"^\s*Link \d{1,3}: \d", re.M)


#: Why a vendor's tools name no GPU -> its text. The states are codes of ``facts.states.VetoCode``; programs read these.
TEXTS = {
    "no_driver": "%(tool)s not found",
    "driver_not_loaded": "%(tool)s says: %(message)s",
    "driver_mismatch": "%(tool)s says: %(message)s",
    "tool_failed": "%(tool)s says: %(message)s",
    "tool_hangs": "%(tool)s gives no answer within %(seconds).0f s",
    "no_gpus": "%(tool)s lists no GPU: %(message)s",
    "gpu_lost": "%(tool)s has lost a GPU: %(message)s",
}
#: nvidia-smi reports these by text alone: a part of its message -> state.
NVIDIA_SAYS = (
    ("version mismatch", "driver_mismatch"),
    ("communicate with the NVIDIA driver", "driver_not_loaded"),
    ("Driver Not Loaded", "driver_not_loaded"),
    ("Unable to determine the device handle", "gpu_lost"),
    ("GPU is lost", "gpu_lost"),
    ("GPU requires reset", "gpu_lost"),
    ("fallen off the bus", "gpu_lost"),
    ("No devices were found", "no_gpus"),
)
#: The same for the tools of AMD.
AMD_SAYS = (
    ("Driver not initialized", "driver_not_loaded"),
    ("amdgpu not found in modules", "driver_not_loaded"),
    ("DRIVER_NOT_LOADED", "driver_not_loaded"),
)


def describe_problem(tool: str, state: str, message: str = "") -> dict[str, str]:
    """Why a tool names no GPU: ``state`` for programs, ``why`` for people."""
    values = {"tool": tool, "message": message, "seconds": host_tools.TOOL_SECONDS}
    return {"state": state, "why": TEXTS[state] % values}


def find_state(answer: Answer, says: Iterable[tuple[str, str]]) -> str:
    """The state of a tool that failed; its text tells some of them."""
    if answer.state != "tool_failed":
        return answer.state
    return next((state for part, state in says if part in answer.text), answer.state)


def nvidia_rows(rows: str, fields: Iterable[str]) -> list[dict[str, str]]:
    """The CSV of ``nvidia-smi --query-gpu``: field -> value of each GPU. Lines with other text are left out."""
    names = list(fields)
    table = []
    for line in rows.splitlines()[:1024]:
        # A name may have a comma; it is the first field.
        values = [value.strip() for value in line.rsplit(",", len(names) - 1)]
        if len(values) == len(names):
            table.append(dict(zip(names, values)))
    return table


def nvidia_gpus(rows: str, fields: Iterable[str]) -> tuple[list[dict[str, Any]], str | None, int | None]:
    """The CSV of ``nvidia-smi --query-gpu``: the GPUs, the driver and the uncorrected ECC errors of all of them."""
    gpus = []
    driver = None
    errors: list[int] = []
    for row in nvidia_rows(rows, fields):
        capability = re.fullmatch(r"(\d{1,3})\.(\d{1,2})", row.get("compute_cap", ""))
        arch = "sm_%s%s" % capability.groups() if capability else None
        gpus.append({"name": parse_text(row["name"]), "memory_mib": parse_number(row["memory.total"]), "arch": arch})
        driver = parse_version(row.get("driver_version")) or driver
        count = parse_number(row.get(NVIDIA_FIELDS[4]))
        errors += [] if count is None else [count]
    return gpus, driver, sum(errors) if errors else None


def nvidia_modes(rows: str, fields: Iterable[str]) -> dict[str, Any]:
    """The same CSV: ``mig_gpus`` (how many are in MIG mode), ``fabric_states`` and ``recovery_actions``, each once.

    None for what the driver does not report.
    """
    names = list(fields)
    table = nvidia_rows(rows, names)

    def values(field: str) -> list[str] | None:
        if field not in names or not table:
            return None
        return sorted({value for value in (parse_text(row[field]) for row in table) if value})[:16]

    modes = [row.get("mig.mode.current", "") for row in table]
    known = "mig.mode.current" in names and table
    return {
        "mig_gpus": sum(mode.strip("[]").lower() == "enabled" for mode in modes) if known else None,
        "fabric_states": values("fabric.state"),
        "recovery_actions": values("gpu_recovery_action"),
    }


def remapped_rows(answer: str) -> tuple[int | None, int | None]:
    """The CSV of ``nvidia-smi --query-remapped-rows``: how many GPUs have pending rows, and a failed remapping."""
    table = nvidia_rows(answer, ("pending", "failure"))
    known = [row for row in table if parse_flag(row["pending"]) is not None]
    if not known:
        return None, None
    return tuple(sum(bool(parse_flag(row[key])) for row in known) for key in ("pending", "failure"))  # type: ignore[return-value]


def parse_flag(text: str) -> bool | None:
    """A yes or no as tools print it; a count above 0 is a yes."""
    word = text.strip("[] ").lower()
    if word in ("yes", "no"):
        return word == "yes"
    number = parse_number(word)
    return None if number is None else number > 0


def count_links(answer: str) -> int | None:
    """The text of ``nvidia-smi nvlink --status``: the fewest active links of a GPU; None if it lists no GPU."""
    parts = re.split(r"^GPU \d{1,3}:", answer, flags=re.M)[1:]
    return min(len(_LINK.findall(part)) for part in parts) if parts else None


def read_nvidia() -> tuple[dict[str, Any], dict[str, str]]:
    """What ``nvidia-smi`` reports, and the problem where it names no GPU."""
    fields = list(NVIDIA_FIELDS)
    # Only the header has the CUDA version; the calls run in parallel.
    table = start_tool("nvidia-smi", "--query-gpu=" + ",".join(fields), NVIDIA_FORMAT)
    header = start_tool("nvidia-smi")
    rows = wait_for_tool(table)
    if rows.state == "tool_hangs":
        # The other one hangs too, and would take as long again.
        host_tools.end_tool(header)
        return {}, describe_problem("nvidia-smi", "tool_hangs")
    banner = wait_for_tool(header)
    while not rows.ok:
        unknown = _INVALID_FIELD.search(rows.text)
        if not unknown or unknown.group(1) not in fields[1:]:
            break
        # An old driver does not know every field; it still reports the others.
        fields.remove(unknown.group(1))
        rows = run_tool("nvidia-smi", "--query-gpu=" + ",".join(fields), NVIDIA_FORMAT)
    if not rows.ok:
        return {}, describe_problem("nvidia-smi", find_state(rows, NVIDIA_SAYS), rows.message)
    gpus, driver, errors = nvidia_gpus(rows.out, fields)
    remaps = start_tool("nvidia-smi", REMAPPED_ROWS, NVIDIA_FORMAT)
    links = start_tool("nvidia-smi", "nvlink", "--status")
    manager = _VERSION.search(run_tool("nv-fabricmanager", "--version").out)
    cuda = _CUDA.search(banner.out)
    facts = {"gpus": gpus, "driver": driver, "cuda": cuda.group(1) if cuda else None, "ecc_uncorrected": errors}
    facts["fabric_manager"] = manager.group() if manager else None
    facts.update(nvidia_modes(rows.out, fields))
    facts["remap_pending"], facts["remap_failed"] = remapped_rows(wait_for_tool(remaps).out)
    facts["nvlinks"] = count_links(wait_for_tool(links).out)
    return facts, describe_problem("nvidia-smi", "no_gpus", "its list is empty")


def rocm_smi_gpus(text: str) -> tuple[list[dict[str, Any]], str | None, int | None]:
    """The JSON of ``rocm-smi``: the GPUs, the driver and the lowest MEC firmware."""
    data = as_mapping(parse_json(text))
    names = sorted((name for name in data if re.fullmatch(r"card\d{1,4}", name)), key=lambda name: int(name[4:]))
    gpus, firmware = [], []
    for card in (as_mapping(data[name]) for name in names):
        size = parse_number(card.get("VRAM Total Memory (B)"))
        names_of_card = (parse_text(card.get(key)) for key in ("Card Series", "Card series", "Device Name"))
        name = next((text for text in names_of_card if text and not text.startswith("0x")), None)
        arch = parse_text(card.get("GFX Version"))
        gpus.append({"name": name, "memory_mib": size >> 20 if size else None, "arch": arch})
        if arch not in INTEGRATED:
            firmware.append(parse_number(card.get("MEC firmware version")))
    known = [version for version in firmware if version is not None]
    return gpus, parse_version(as_mapping(data.get("system")).get("Driver version")), min(known) if known else None


def amd_smi_gpus(static: str, firmware: str) -> tuple[list[dict[str, Any]], str | None, int | None]:
    """The JSON of ``amd-smi static`` and ``amd-smi firmware``: as :func:`rocm_smi_gpus`."""
    gpus, driver, versions, integrated = [], None, [], []
    for gpu in _amd_smi_list(static):
        asic, loaded = as_mapping(gpu.get("asic")), as_mapping(gpu.get("driver"))
        arch = parse_text(asic.get("target_graphics_version"))
        memory = _amd_smi_memory(as_mapping(gpu.get("vram")))
        gpus.append({"name": parse_text(asic.get("market_name")), "memory_mib": memory, "arch": arch})
        # Before release 6.4 the keys were longer.
        driver = parse_version(loaded.get("version")) or parse_version(loaded.get("driver_version")) or driver
        if arch in INTEGRATED:
            integrated.append(parse_number(gpu.get("gpu")))
    for gpu in _amd_smi_list(firmware):
        listed = {}
        for entry in map(as_mapping, as_list(gpu.get("fw_list"))):
            listed[parse_text(entry.get("fw_id"))] = parse_number(entry.get("fw_version"))
        if parse_number(gpu.get("gpu")) not in integrated:
            versions.append(listed.get("CP_MEC1"))
    known = [version for version in versions if version is not None]
    return gpus, driver, min(known) if known else None


def _amd_smi_memory(vram: dict[str, Any]) -> int | None:
    """The memory in MiB: ``size`` as a mapping, a number or a text, or ``vram_size_mb`` before release 6.4."""
    size = vram.get("size", vram.get("vram_size_mb"))
    if isinstance(size, dict):
        value, unit = size.get("value"), size.get("unit")
    else:
        value, _, unit = str(size if isinstance(size, (str, int, float)) else "").partition(" ")
    amount = parse_number(value)
    return amount << 10 if amount and unit == "GB" else amount


def _amd_smi_list(text: str) -> list[dict[str, Any]]:
    """The GPUs of an answer: a list, from release 7 on under ``gpu_data``."""
    data = parse_json(text)
    listed = data.get("gpu_data") if isinstance(data, dict) else data
    return [gpu for gpu in as_list(listed)[:1024] if isinstance(gpu, dict)]


def kfd_gpus(root: str = "/sys/class/kfd/kfd/topology/nodes") -> tuple[list[str], list[int]]:
    """The architecture of each GPU, and the MEC firmware of each that is not integrated, from the kernel's driver."""
    archs, firmware = [], []
    for path in sorted(glob.glob(os.path.join(glob.escape(root), "*", "properties"))):
        lines = [line.split(None, 1) for line in (read_file(path) or "").splitlines()]
        values = dict(words for words in lines if len(words) == 2)
        version = parse_number(values.get("gfx_target_version"))
        if version:
            # 90402 is gfx942, 90010 is gfx90a: minor and step are hexadecimal digits in the name.
            arch = "gfx%d%x%x" % (version // 10000, version // 100 % 100, version % 100)
            archs.append(arch)
            image = parse_number(values.get("fw_version"))
            firmware += [image] if image and arch not in INTEGRATED else []
    return archs, firmware


def read_ras(pattern: str = "/sys/class/drm/card*/device/ras/umc_err_count") -> int | None:
    """Uncorrectable memory errors of all AMD GPUs; None if the driver has no counters."""
    counts = []
    for path in glob.glob(pattern):
        counts += [int(number) for number in re.findall(r"ue:\s*(\d{1,18})\b", read_file(path) or "")]
    return sum(counts) if counts else None


def read_rocm(folder: str = host_tools.ROCM) -> str | None:
    """The version of ROCm in its directory, without the build number."""
    return parse_version((read_file(folder, ".info", "version") or "").split("-")[0])


def read_amd() -> tuple[dict[str, Any], dict[str, str]]:
    """What ``rocm-smi`` or ``amd-smi`` and the kernel report, and the problem where they name no GPU."""
    old = run_tool("rocm-smi", *ROCM_SMI)
    gpus, driver, firmware = rocm_smi_gpus(old.out)
    tool, last = "rocm-smi", old
    if not gpus or any(gpu["name"] is None or gpu["memory_mib"] is None for gpu in gpus):
        static = start_tool("amd-smi", *AMD_SMI_STATIC)
        images = start_tool("amd-smi", *AMD_SMI_FIRMWARE)
        new, fw = wait_for_tool(static), wait_for_tool(images)
        if new.ok and len(amd_smi_gpus(new.out, "")[0]) >= len(gpus):
            gpus, driver, firmware = amd_smi_gpus(new.out, fw.out)
        if new.state != "no_driver":
            tool, last = "amd-smi", new
        elif old.state == "no_driver":
            tool = "rocm-smi and amd-smi"
    problem = describe_problem(tool, find_state(last, AMD_SAYS) or "no_gpus", last.message or "its list is empty")
    archs, images_of_kernel = kfd_gpus()
    if len(archs) == len(gpus):
        gpus = [dict(gpu, arch=arch) for gpu, arch in zip(gpus, archs)]
    if firmware is None and images_of_kernel:
        firmware = min(images_of_kernel)
    if not gpus:
        return {}, problem
    if driver == os.uname().release:
        # The amdgpu of the kernel itself has no version; the tools print that of the kernel.
        driver = None
    facts = {"gpus": gpus, "driver": driver, "rocm": read_rocm(), "mec_firmware": firmware}
    return dict(facts, ecc_uncorrected=read_ras()), problem


def read_host() -> dict[str, Any]:
    """The facts of the host beside its GPUs."""
    pairs = [line.strip().split("=", 1) for line in (read_file("/etc/os-release") or "").splitlines() if "=" in line]
    release = {key: parse_text(value.strip("\"'")) for key, value in pairs}
    try:
        glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except (ValueError, OSError):
        glibc = []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2.0**30
    return {
        "machine": os.uname().machine,
        "cpu_count": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "glibc": glibc[-1] if glibc else None,
        "python": sorted(re.findall(r"3\.\d+", " ".join(glob.glob("/usr/bin/python3.[0-9]*[0-9]")))),
        "os": {"id": release.get("ID"), "version": release.get("VERSION_ID")},
    }


#: What is known only where a tool lists GPUs.
GPU_FACTS = (
    "driver",
    "cuda",
    "rocm",
    "mec_firmware",
    "ecc_uncorrected",
    "fabric_manager",
    "mig_gpus",
    "fabric_states",
    "recovery_actions",
    "remap_pending",
    "remap_failed",
    "nvlinks",
)


def read_facts(vendor: str | None = None) -> dict[str, Any]:
    """All facts of this host. The tools of ``vendor`` run first, the others only if those list no GPU.

    ``vendor``, ``gpus`` (``name``, ``memory_mib``, ``arch`` of each), those of :data:`GPU_FACTS` (``cuda`` is the
    highest that the driver supports), ``gpu_errors`` and ``xid`` (of the kernel's log, see
    :func:`kernel_log.find_errors`), those of :func:`machine_facts.read_machine` and of :func:`read_host`. ``problems``
    holds for each vendor why its tools list no GPU, see :func:`describe_problem`.
    """
    facts: dict[str, Any] = dict(dict.fromkeys(GPU_FACTS), vendor=None, gpus=[], problems={}, gpu_errors=None, xid=None)
    host_tools.start_clock()
    readers = {"nvidia": read_nvidia, "amd": read_amd}
    for name in sorted(readers, key=lambda name: (name != vendor, name != "nvidia")):
        gpu_facts, problem = readers[name]()
        if gpu_facts.get("gpus"):
            facts.update(gpu_facts, vendor=name)
            break
        facts["problems"][name] = problem
    # The log tells why a tool lists no GPU, so it is read then as well.
    if facts["vendor"] == "nvidia" or facts["problems"].get("nvidia", {}).get("state", "no_driver") != "no_driver":
        facts["gpu_errors"] = kernel_log.read_errors()
        if facts["gpu_errors"] is not None:
            facts["xid"] = sorted({error["code"] for error in facts["gpu_errors"] if error["kind"] == "xid"})
    facts.update(machine_facts.read_machine())
    facts.update(read_host())
    return facts


def main() -> None:
    """Prints the facts."""
    json.dump(read_facts(), sys.stdout)


if __name__ == "__main__":
    main()
