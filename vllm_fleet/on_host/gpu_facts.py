"""Runs on a host: writes the facts of its GPUs, its driver and the host itself as one JSON object.

Standard library only, for the Python that the host has (3.8 or later); it changes nothing. An unknown fact is ``null``.
:func:`read_facts` lists the keys.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import subprocess
import sys
from typing import Any, Iterable

#: The time limit of a tool. One that hangs on a broken GPU cannot always be killed.
TOOL_SECONDS = 40.0
ROCM = os.environ.get("ROCM_PATH", "/opt/rocm")
#: A shell without a login, and sudo, may have no such folder in PATH.
_MORE_FOLDER = os.path.join(ROCM, "bin")
NVIDIA_FIELDS = ("name", "memory.total", "compute_cap", "driver_version", "ecc.errors.uncorrected.volatile.total")
NVIDIA_FORMAT = "--format=csv,noheader,nounits"
#: Arguments of the tools of AMD.
ROCM_SMI = ("--showproductname", "--showmeminfo", "vram", "--showdriverversion", "--showfwinfo", "--json")
AMD_SMI_STATIC = ("static", "--asic", "--vram", "--driver", "--json")
AMD_SMI_FIRMWARE = ("firmware", "--json")
#: From driver 610 on the header reads "CUDA UMD Version".
_CUDA = re.compile(r"CUDA(?: UMD)? Version\s*:\s*(\d+\.\d+)")
_VERSION = re.compile(r"\d+(\.\d+)+")
_XID = re.compile(r"NVRM: Xid \([^)]*\): (\d+)")
_INVALID_FIELD = re.compile(r'Field "([^"]+)" is not a valid field to query')


#: Why a vendor's tools name no GPU -> its text. The states are codes of ``facts.states.VetoCode``; programs read these.
TEXTS = {
    "no_driver": "%(tool)s not found",
    "driver_not_loaded": "%(tool)s says: %(message)s",
    "driver_mismatch": "%(tool)s says: %(message)s",
    "tool_failed": "%(tool)s says: %(message)s",
    "tool_hangs": "%(tool)s gives no answer within %(seconds).0f s",
    "no_gpus": "%(tool)s lists no GPU: %(message)s",
}
#: nvidia-smi reports these by text alone: a part of its message -> state.
NVIDIA_SAYS = (
    ("version mismatch", "driver_mismatch"),
    ("communicate with the NVIDIA driver", "driver_not_loaded"),
    ("No devices were found", "no_gpus"),
)


class Answer:
    """The answer of a tool.

    Attributes:
        state: empty for an answer, else ``no_driver``, ``tool_hangs`` or ``tool_failed``.
        out: its standard output.
        message: the first line of output of a tool that failed.
    """

    def __init__(self, state: str = "", out: str = "", message: str = "") -> None:
        self.state, self.out, self.message = state, out, message

    @property
    def ok(self) -> bool:
        """Whether the tool is installed, ended in time and succeeded."""
        return not self.state


def start_tool(*words: str) -> subprocess.Popen[str] | None:
    """Starts a tool; None if the host does not have it."""
    folders = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    path = shutil.which(words[0], path=os.pathsep.join([*folders, _MORE_FOLDER]))
    if path is None:
        return None
    environment = dict(os.environ, LC_ALL="C")
    pipe = subprocess.PIPE
    return subprocess.Popen([path, *words[1:]], stdout=pipe, stderr=pipe, text=True, errors="replace", env=environment)


def wait_for_tool(process: subprocess.Popen[str] | None) -> Answer:
    """Waits for a tool that :func:`start_tool` began."""
    if process is None:
        return Answer("no_driver")
    try:
        out, err = process.communicate(timeout=TOOL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return Answer("tool_hangs")
    if process.returncode == 0:
        return Answer(out=out)
    lines = [line.strip() for line in (out + "\n" + err).splitlines() if line.strip()]
    return Answer("tool_failed", out, (lines or ["exit status %d" % process.returncode])[0])


def describe_problem(tool: str, state: str, message: str = "") -> dict[str, str]:
    """Why a tool names no GPU: ``state`` for programs, ``why`` for people."""
    return {"state": state, "why": TEXTS[state] % {"tool": tool, "message": message, "seconds": TOOL_SECONDS}}


def parse_number(text: Any) -> int | None:
    """A number as tools print it, decimal or hexadecimal; None for ``[N/A]`` and similar."""
    try:
        return int(str(text).strip(), 0)
    except ValueError:
        return None


def parse_text(text: Any) -> str | None:
    """A text as tools print it; None for ``N/A`` and similar."""
    value = str(text or "").strip()
    return None if value.strip("[]").lower() in ("", "n/a", "not supported", "unknown error") else value


def nvidia_gpus(rows: str, fields: Iterable[str]) -> tuple[list[dict[str, Any]], str | None, int | None]:
    """The CSV of ``nvidia-smi --query-gpu``: the GPUs, the driver and the uncorrected ECC errors of all of them."""
    names = list(fields)
    gpus = []
    driver = None
    errors: list[int] = []
    for line in rows.splitlines():
        values = [value.strip() for value in line.rsplit(",", len(names) - 1)]
        if len(values) != len(names):
            continue
        row = dict(zip(names, values))
        capability = re.match(r"(\d+)\.(\d+)$", row.get("compute_cap", ""))
        arch = "sm_%s%s" % capability.groups() if capability else None
        gpus.append({"name": parse_text(row["name"]), "memory_mib": parse_number(row["memory.total"]), "arch": arch})
        driver = parse_text(row.get("driver_version")) or driver
        count = parse_number(row.get(NVIDIA_FIELDS[4]))
        errors += [] if count is None else [count]
    return gpus, driver, sum(errors) if errors else None


def read_xid() -> list[int] | None:
    """The Xid errors in the kernel's log since it started; None if the log cannot be read."""
    log = wait_for_tool(start_tool("dmesg"))
    if not log.ok:
        log = wait_for_tool(start_tool("journalctl", "--dmesg", "--boot", "--quiet", "--output=cat", "--no-pager"))
    return sorted({int(number) for number in _XID.findall(log.out)}) if log.ok else None


def read_nvidia() -> tuple[dict[str, Any], dict[str, str]]:
    """What ``nvidia-smi`` reports, and the problem where it names no GPU."""
    fields = list(NVIDIA_FIELDS)
    # Only the header has the CUDA version; the two calls run in parallel.
    table = start_tool("nvidia-smi", "--query-gpu=" + ",".join(fields), NVIDIA_FORMAT)
    header = start_tool("nvidia-smi")
    rows, banner = wait_for_tool(table), wait_for_tool(header)
    while not rows.ok:
        unknown = _INVALID_FIELD.search(rows.out + rows.message)
        if not unknown or unknown.group(1) not in fields:
            break
        # An old driver does not know every field; it still reports the others.
        fields.remove(unknown.group(1))
        rows = wait_for_tool(start_tool("nvidia-smi", "--query-gpu=" + ",".join(fields), NVIDIA_FORMAT))
    if not rows.ok:
        states = [state for part, state in NVIDIA_SAYS if part in rows.message]
        return {}, describe_problem("nvidia-smi", states[0] if states else rows.state, rows.message)
    gpus, driver, errors = nvidia_gpus(rows.out, fields)
    manager = _VERSION.search(wait_for_tool(start_tool("nv-fabricmanager", "--version")).out)
    cuda = _CUDA.search(banner.out)
    facts = {"gpus": gpus, "driver": driver, "cuda": cuda.group(1) if cuda else None, "ecc_uncorrected": errors}
    facts["fabric_manager"] = manager.group() if manager else None
    return dict(facts, xid=read_xid()), describe_problem("nvidia-smi", "no_gpus", "its list is empty")


def _json(text: str) -> Any:
    """The JSON in an answer; tools print warnings before it."""
    begin = min((at for at in (text.find("{"), text.find("[{")) if at >= 0), default=-1)
    try:
        return json.loads(text[begin:]) if begin >= 0 else None
    except ValueError:
        return None


def rocm_smi_gpus(text: str) -> tuple[list[dict[str, Any]], str | None, int | None]:
    """The JSON of ``rocm-smi``: the GPUs, the driver and the lowest MEC firmware."""
    read = _json(text)
    data = read if isinstance(read, dict) else {}
    names = sorted((name for name in data if re.match(r"card\d+$", name)), key=lambda name: int(name[4:]))
    gpus, firmware = [], []
    for card in (data[name] for name in names):
        size = parse_number(card.get("VRAM Total Memory (B)"))
        names_of_card = (parse_text(card.get(key)) for key in ("Card Series", "Card series", "Device Name"))
        name = next((text for text in names_of_card if text and not text.startswith("0x")), None)
        arch = parse_text(card.get("GFX Version"))
        gpus.append({"name": name, "memory_mib": size >> 20 if size else None, "arch": arch})
        firmware.append(parse_number(card.get("MEC firmware version")))
    known = [version for version in firmware if version is not None]
    return gpus, parse_text((data.get("system") or {}).get("Driver version")), min(known) if known else None


def amd_smi_gpus(static: str, firmware: str) -> tuple[list[dict[str, Any]], str | None, int | None]:
    """The JSON of ``amd-smi static`` and ``amd-smi firmware``: as :func:`rocm_smi_gpus`."""
    gpus, driver, versions = [], None, []
    for gpu in _amd_smi_list(static):
        asic, size = gpu.get("asic") or {}, (gpu.get("vram") or {}).get("size")
        amount = parse_number(size.get("value") if isinstance(size, dict) else str(size or "-").split()[0])
        arch = parse_text(asic.get("target_graphics_version"))
        gpus.append({"name": parse_text(asic.get("market_name")), "memory_mib": amount, "arch": arch})
        driver = parse_text((gpu.get("driver") or {}).get("version")) or driver
    for gpu in _amd_smi_list(firmware):
        listed = {entry.get("fw_id"): entry.get("fw_version") for entry in gpu.get("fw_list") or []}
        versions.append(parse_number(listed.get("CP_MEC1")))
    known = [version for version in versions if version is not None]
    return gpus, driver, min(known) if known else None


def _amd_smi_list(text: str) -> list[dict[str, Any]]:
    """The GPUs of an answer: a list, from release 7 on under ``gpu_data``."""
    data = _json(text)
    listed = data.get("gpu_data") if isinstance(data, dict) else data
    return [gpu for gpu in listed or [] if isinstance(gpu, dict)]


def kfd_gpus(root: str = "/sys/class/kfd/kfd/topology/nodes") -> tuple[list[str], list[int]]:
    """The architecture and the MEC firmware of each GPU, from the kernel's compute driver."""
    archs, firmware = [], []
    for path in sorted(glob.glob(os.path.join(root, "*", "properties"))):
        try:
            with open(path) as file:
                values = dict(line.split(None, 1) for line in file if len(line.split(None, 1)) == 2)
        except OSError:
            continue
        version = parse_number(values.get("gfx_target_version"))
        if version:
            # 90402 is gfx942, 90010 is gfx90a: minor and step are hexadecimal digits in the name.
            archs.append("gfx%d%x%x" % (version // 10000, version // 100 % 100, version % 100))
            firmware.append(parse_number(values.get("fw_version")) or 0)
    return archs, [number for number in firmware if number]


def read_ras(pattern: str = "/sys/class/drm/card*/device/ras/umc_err_count") -> int | None:
    """Uncorrectable memory errors of all AMD GPUs; None if the driver has no counters."""
    counts = []
    for path in glob.glob(pattern):
        try:
            with open(path) as file:
                counts += [int(number) for number in re.findall(r"ue:\s*(\d+)", file.read())]
        except OSError:
            continue
    return sum(counts) if counts else None


def read_rocm(folder: str = ROCM) -> str | None:
    """The version of ROCm in its directory, without the build number."""
    try:
        with open(os.path.join(folder, ".info", "version")) as file:
            return parse_text(file.read().split("-")[0])
    except OSError:
        return None


def read_amd() -> tuple[dict[str, Any], dict[str, str]]:
    """What ``rocm-smi`` or ``amd-smi`` and the kernel report, and the problem where they name no GPU."""
    old = wait_for_tool(start_tool("rocm-smi", *ROCM_SMI))
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
    problem = describe_problem(tool, last.state or "no_gpus", last.message or "its list is empty")
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
    release: dict[str, str] = {}
    try:
        with open("/etc/os-release") as file:
            pairs = (line.strip().split("=", 1) for line in file if "=" in line)
            release = {key: value.strip("\"'") for key, value in pairs}
    except OSError:
        release = {}
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


def read_facts(vendor: str | None = None) -> dict[str, Any]:
    """All facts of this host. The tools of ``vendor`` run first, the others only if those list no GPU.

    ``vendor``, ``gpus`` (``name``, ``memory_mib``, ``arch`` of each), ``driver``, ``cuda`` (the highest that the driver
    supports), ``fabric_manager``, ``rocm``, ``mec_firmware``, ``ecc_uncorrected``, ``xid`` and those of
    :func:`read_host`; ``problems`` holds for each vendor why its tools list no GPU, see :func:`describe_problem`.
    """
    unknown = ("driver", "cuda", "rocm", "mec_firmware", "ecc_uncorrected", "xid", "fabric_manager")
    facts: dict[str, Any] = dict(dict.fromkeys(unknown), vendor=None, gpus=[], problems={})
    readers = {"nvidia": read_nvidia, "amd": read_amd}
    for name in sorted(readers, key=lambda name: (name != vendor, name != "nvidia")):
        gpu_facts, problem = readers[name]()
        if gpu_facts.get("gpus"):
            facts.update(gpu_facts, vendor=name)
            break
        facts["problems"][name] = problem
    facts.update(read_host())
    return facts


def main() -> None:
    """Prints the facts."""
    json.dump(read_facts(), sys.stdout)


if __name__ == "__main__":
    main()
