"""Facts of a host against those of its class: what is wrong, and what to do about it.

Pure: :mod:`vllm_fleet.on_host.gpu_facts` reads the facts, :func:`manifest.wanted_facts` names those of the class. A
fact that is wanted and unknown is a veto too; a fault that the host cannot notice is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_fleet.base.versions import version_key
from vllm_fleet.facts.states import VetoCode

Facts = Mapping[str, Any]
#: Xid errors of the hardware or of its firmware, from NVIDIA's catalogue; the others come from programs.
HARDWARE_XID = frozenset({48, 62, 64, 74, 79, 95, 119, 120, 140})
#: Graphics inside AMD's processors: the tools list them, no model runs on them.
INTEGRATED = frozenset(
    {"gfx902", "gfx909", "gfx90c", "gfx1033", "gfx1035", "gfx1036", "gfx1037"}
    | {"gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153"}
)
_TOOLS = {"nvidia": "nvidia-smi", "amd": "rocm-smi"}
_INSPECT = "{why}: look for the driver in the kernel's log (dmesg), repair or {install}"
#: Code -> its text. Programs read the code.
TEXTS: Mapping[VetoCode, str] = {
    VetoCode.NO_DRIVER: "{why}: {install}",
    VetoCode.DRIVER_MISMATCH: "{why}: restart the host, so that the installed driver is loaded",
    VetoCode.DRIVER_NOT_LOADED: _INSPECT,
    VetoCode.TOOL_FAILED: _INSPECT,
    VetoCode.TOOL_HANGS: _INSPECT,
    VetoCode.NO_GPUS: _INSPECT,
    VetoCode.WRONG_VENDOR: "has GPUs of {vendor} ({names}), its class has {count} of {wanted}",
    VetoCode.TOO_FEW_GPUS: ("has {gpus}, its class has {count}: look for the missing ones in the kernel's log (dmesg)"),
    VetoCode.TOO_MANY_GPUS: "has {gpus}, its class has {count}: choose the class of that size",
    VetoCode.WRONG_GPU_NAME: "its GPU is {names}, that of its class is {wanted}: choose the class of that GPU",
    VetoCode.WRONG_GPU_ARCH: (
        "the architecture of its GPU is {archs}, that of its class is {wanted}: choose another class"
    ),
    VetoCode.GPU_MEMORY_UNKNOWN: "the memory of a GPU is unknown: {tool} does not report it, repair the driver",
    VetoCode.TOO_LITTLE_GPU_MEMORY: (
        "a GPU has {gib:.1f} GiB of memory, its class needs {floor:.1f}: choose the class of that GPU, or end its "
        "partitions"
    ),
    VetoCode.WRONG_DRIVER: (
        "its driver is {version}, the plan has {planned}: install that version and restart the host to load it"
    ),
    VetoCode.WRONG_ROCM: "its ROCm is {version}, the plan has {planned}: install that version",
    VetoCode.NO_FABRIC_MANAGER: (
        "its fabric manager is missing, its driver is {driver}: CUDA fails with error 802; install the fabric manager "
        "of exactly the driver's version"
    ),
    VetoCode.WRONG_FABRIC_MANAGER: (
        "its fabric manager is {version}, its driver is {driver}: CUDA fails with error 802; install the fabric "
        "manager of exactly the driver's version"
    ),
    VetoCode.DRIVER_UNKNOWN: "needs the driver {floor} or newer: the version that it has is unknown; {install}",
    VetoCode.DRIVER_TOO_OLD: "needs the driver {floor} or newer: it has {driver}; install driver >= {floor}",
    VetoCode.DRIVER_TOO_NEW: (
        "needs a driver below {ceiling}: it has {driver}, which no recipe covers (errors 803, 804); "
        "install an older driver, or raise driver_below in recipes/drivers.yml"
    ),
    VetoCode.CUDA_UNKNOWN: (
        "needs CUDA {cuda} or newer: nvidia-smi does not report what the driver {driver} supports; {fix}"
    ),
    VetoCode.CUDA_TOO_OLD: "needs CUDA {cuda} or newer: the driver {driver} supports {supported}; {fix}",
    VetoCode.NO_ROCM: "needs ROCm {floor} or newer: /opt/rocm has none; install ROCm >= {floor}",
    VetoCode.ROCM_TOO_OLD: "needs ROCm {floor} or newer: it has {version}; install ROCm >= {floor}",
    VetoCode.GLIBC_TOO_OLD: (
        "needs glibc {floor} or newer: it has {version}; use a newer release of the operating system"
    ),
    VetoCode.NO_PYTHON: (
        "needs Python {wanted}: it has {versions} in /usr/bin; use an image of a distribution that brings one, or "
        "install it"
    ),
    VetoCode.ECC_ERRORS: (
        "has {errors} uncorrected memory errors (ECC): restart the host, and replace the GPU if they return"
    ),
    VetoCode.XID_ERRORS: ("its kernel has logged Xid {numbers}: restart the host, and replace the GPU if it returns"),
}


@dataclass(frozen=True)
class Veto:
    """What is wrong with a host: a code for programs, a text for people."""

    code: VetoCode
    text: str

    def __str__(self) -> str:
        return self.text


def _veto(code: VetoCode, **values: Any) -> Veto:
    return Veto(code, TEXTS[code].format(**values))


def counted_gpus(facts: Facts) -> list[Mapping[str, Any]]:
    """The GPUs that a model can run on."""
    return [gpu for gpu in facts["gpus"] if gpu["arch"] not in INTEGRATED]


def is_named(name: str | None, part: str) -> bool:
    """Whether a GPU's name contains the name of a class as a word: ``NVIDIA GB200`` is not a B200."""
    return bool(name and re.search(rf"(?<![A-Za-z0-9]){re.escape(part)}(?![A-Za-z0-9])", name))


def find_vetoes(wanted: Facts, facts: Facts) -> tuple[Veto, ...]:
    """Why a run must not touch a host; empty for a class without GPUs and for a host that matches its class.

    Args:
        wanted: the facts of its class.
        facts: what the host reports.
    """
    if "gpu_vendor" not in wanted:
        return ()
    if facts.get("vendor") != wanted["gpu_vendor"]:
        return () if _is_repairable(wanted, facts) else (_no_gpus(wanted, facts),)
    gpus = counted_gpus(facts)
    software = () if wanted.get("driver_role") else find_driver_faults(wanted, facts)
    return (*_kind(wanted, gpus), *software, *_system(wanted, facts), *_health(facts))


def find_repairs(wanted: Facts, facts: Facts) -> tuple[Veto, ...]:
    """What the role ``driver_role`` has to repair; empty where the image provides the driver.

    Args:
        wanted: the facts of its class.
        facts: what the host reports.
    """
    if not wanted.get("driver_role"):
        return ()
    if facts.get("vendor") != wanted["gpu_vendor"]:
        return (_no_gpus(wanted, facts),) if _is_repairable(wanted, facts) else ()
    return find_driver_faults(wanted, facts)


def _is_repairable(wanted: Facts, facts: Facts) -> bool:
    """Whether a host that lists no GPU may only lack the driver that a role installs."""
    return bool(wanted.get("driver_role")) and not facts.get("vendor")


def find_driver_faults(wanted: Facts, facts: Facts) -> tuple[Veto, ...]:
    """What is wrong with the driver, its libraries and its fabric manager."""
    return (*_exact(wanted, facts), *_software(wanted, facts), *_fabric(wanted, facts))


def _exact(wanted: Facts, facts: Facts) -> Iterator[Veto]:
    """Whether driver and ROCm have exactly the planned version, where a role installs them."""
    for key, code in (("driver", VetoCode.WRONG_DRIVER), ("rocm", VetoCode.WRONG_ROCM)):
        planned, version = wanted.get(f"{key}_version"), facts.get(key)
        if planned and version != planned:
            yield _veto(code, version=version or "unknown", planned=planned)


def _fabric(wanted: Facts, facts: Facts) -> Iterator[Veto]:
    """Whether the fabric manager of a host with NVSwitches has the driver's version."""
    if not wanted.get("fabric_manager"):
        return
    version, driver = facts.get("fabric_manager"), facts["driver"]
    if version != driver:
        code = VetoCode.WRONG_FABRIC_MANAGER if version else VetoCode.NO_FABRIC_MANAGER
        yield _veto(code, version=version, driver=driver)


def _no_gpus(wanted: Facts, facts: Facts) -> Veto:
    vendor = wanted["gpu_vendor"]
    if facts.get("vendor"):
        names = ", ".join(sorted({str(gpu["name"]) for gpu in facts["gpus"]}))
        count = wanted["gpu_count"]
        return _veto(VetoCode.WRONG_VENDOR, vendor=facts["vendor"], names=names, count=count, wanted=vendor)
    none = {"state": VetoCode.NO_GPUS, "why": f"{_TOOLS[vendor]} lists no GPU"}
    problem = (facts.get("problems") or {}).get(vendor) or none
    return _veto(VetoCode(problem["state"]), why=problem["why"], install=_install(wanted))


def _install(wanted: Facts) -> str:
    floor = wanted.get("driver_min")
    driver = f"install the driver, {floor} or newer" if floor else "install the driver"
    if wanted["gpu_vendor"] == "amd":
        floor = wanted.get("rocm_min")
        return f"{driver}, and ROCm{f' {floor} or newer' if floor else ''}"
    return driver


def _kind(wanted: Facts, gpus: Sequence[Mapping[str, Any]]) -> Iterator[Veto]:
    """Whether number, name, architecture and memory of the GPUs match the class."""
    count = wanted["gpu_count"]
    if len(gpus) != count:
        code = VetoCode.TOO_FEW_GPUS if len(gpus) < count else VetoCode.TOO_MANY_GPUS
        yield _veto(code, gpus=_gpus(len(gpus)), count=count)
    names = _seen(gpu["name"] for gpu in gpus if not is_named(gpu["name"], wanted["gpu_name"]))
    if "gpu_name" in wanted and names:
        yield _veto(VetoCode.WRONG_GPU_NAME, names=names, wanted=wanted["gpu_name"])
    archs = _seen(gpu["arch"] for gpu in gpus if gpu["arch"] != wanted["gpu_arch"])
    if archs:
        yield _veto(VetoCode.WRONG_GPU_ARCH, archs=archs, wanted=wanted["gpu_arch"])
    floor = wanted.get("gpu_memory_gib_min")
    if floor is not None and gpus:
        sizes = [gpu["memory_mib"] for gpu in gpus]
        if None in sizes:
            yield _veto(VetoCode.GPU_MEMORY_UNKNOWN, tool=_TOOLS[wanted["gpu_vendor"]])
        elif min(sizes) / 1024 < floor:
            yield _veto(VetoCode.TOO_LITTLE_GPU_MEMORY, gib=min(sizes) / 1024, floor=floor)


def _software(wanted: Facts, facts: Facts) -> Iterator[Veto]:
    """Whether driver and libraries are new enough."""
    driver, floor = facts["driver"], wanted.get("driver_min")
    if floor and not driver:
        yield _veto(VetoCode.DRIVER_UNKNOWN, floor=floor, install=_install(wanted))
    elif floor and version_key(driver) < version_key(floor):
        yield _veto(VetoCode.DRIVER_TOO_OLD, floor=floor, driver=driver)
    ceiling = wanted.get("driver_below")
    if ceiling and driver and version_key(driver) >= version_key(ceiling):
        yield _veto(VetoCode.DRIVER_TOO_NEW, ceiling=ceiling, driver=driver)
    cuda = wanted.get("cuda_min")
    if cuda and wanted["gpu_vendor"] == "nvidia":
        supported = facts["cuda"]
        fix = f"install driver >= {floor}" if floor else f"install a driver for CUDA {cuda}"
        if not supported:
            yield _veto(VetoCode.CUDA_UNKNOWN, cuda=cuda, driver=driver, fix=fix)
        elif version_key(supported) < version_key(cuda):
            yield _veto(VetoCode.CUDA_TOO_OLD, cuda=cuda, driver=driver, supported=supported, fix=fix)
    least, rocm = wanted.get("rocm_min"), facts.get("rocm")
    if least and not rocm:
        yield _veto(VetoCode.NO_ROCM, floor=least)
    elif least and version_key(str(rocm)) < version_key(least):
        yield _veto(VetoCode.ROCM_TOO_OLD, floor=least, version=rocm)


def _system(wanted: Facts, facts: Facts) -> Iterator[Veto]:
    """Whether the operating system is new enough."""
    floor, version = wanted.get("glibc_min"), facts.get("glibc")
    if floor and (not version or version_key(version) < version_key(floor)):
        yield _veto(VetoCode.GLIBC_TOO_OLD, floor=floor, version=version or "none")
    pythons, versions = wanted.get("python"), facts.get("python")
    if pythons and versions is not None and not set(pythons) & set(versions):
        yield _veto(VetoCode.NO_PYTHON, wanted=" or ".join(pythons), versions=", ".join(versions) or "none")


def _health(facts: Facts) -> Iterator[Veto]:
    """Whether the GPUs report errors of the hardware. An unknown count or log is not an error."""
    if errors := facts.get("ecc_uncorrected"):
        yield _veto(VetoCode.ECC_ERRORS, errors=errors)
    if numbers := sorted(HARDWARE_XID & set(facts.get("xid") or ())):
        yield _veto(VetoCode.XID_ERRORS, numbers=", ".join(map(str, numbers)))


def _gpus(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


def _seen(values: Iterator[Any]) -> str:
    return ", ".join(sorted({"unknown" if value is None else str(value) for value in values}))
