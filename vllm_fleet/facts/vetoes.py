"""Facts of a host against those of its class: what is wrong, and what to do about it.

Pure: the facts are those of :mod:`vllm_fleet.on_host.gpu_facts`, the class's are those of
:func:`manifest.wanted_facts`. A fact that is
wanted and unknown is a veto too; a fault that the host could not have noticed is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllm_fleet.base.versions import version_key

Facts = Mapping[str, Any]
#: Xid errors of the hardware or of its firmware, from NVIDIA's catalogue; the others come from programs.
HARDWARE_XID = frozenset({48, 62, 64, 74, 79, 95, 119, 120, 140})
#: Graphics inside AMD's processors: the tools list them, no model runs on them.
INTEGRATED = frozenset(
    {"gfx902", "gfx909", "gfx90c", "gfx1033", "gfx1035", "gfx1036", "gfx1037"}
    | {"gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153"}
)
_TOOLS = {"nvidia": "nvidia-smi", "amd": "rocm-smi"}


def counted_gpus(facts: Facts) -> list[Mapping[str, Any]]:
    """The GPUs that a model can run on."""
    return [gpu for gpu in facts["gpus"] if gpu["arch"] not in INTEGRATED]


def is_named(name: str | None, part: str) -> bool:
    """Whether a GPU's name holds a class's, as a word: ``NVIDIA GB200`` is no B200."""
    return bool(name and re.search(rf"(?<![A-Za-z0-9]){re.escape(part)}(?![A-Za-z0-9])", name))


def vetoes(wanted: Facts, facts: Facts) -> tuple[str, ...]:
    """Why a host must not be touched; empty for a class without GPUs and for a host that is as its class says.

    Args:
        wanted: what its class says.
        facts: what the host says.
    """
    if "gpu_vendor" not in wanted:
        return ()
    if facts.get("vendor") != wanted["gpu_vendor"]:
        return () if _is_repairable(wanted, facts) else (_no_gpus(wanted, facts),)
    gpus = counted_gpus(facts)
    software = () if wanted.get("driver_role") else driver_faults(wanted, facts)
    return (*_kind(wanted, gpus), *software, *_system(wanted, facts), *_health(facts))


def repairs(wanted: Facts, facts: Facts) -> tuple[str, ...]:
    """What the role of ``driver_role`` has to bring about; empty where the fleet leaves the driver to the image.

    Args:
        wanted: what the host's class says.
        facts: what the host says.
    """
    if not wanted.get("driver_role"):
        return ()
    if facts.get("vendor") != wanted["gpu_vendor"]:
        return (_no_gpus(wanted, facts),) if _is_repairable(wanted, facts) else ()
    return driver_faults(wanted, facts)


def _is_repairable(wanted: Facts, facts: Facts) -> bool:
    """Whether a host that shows no GPU may lack just the driver that a role installs."""
    return bool(wanted.get("driver_role")) and not facts.get("vendor")


def driver_faults(wanted: Facts, facts: Facts) -> tuple[str, ...]:
    """What is wrong with the driver and with what comes with it."""
    return (*_exact(wanted, facts), *_software(wanted, facts), *_fabric(wanted, facts))


def _exact(wanted: Facts, facts: Facts) -> Iterator[str]:
    """Whether what runs is what was installed; a driver of a managed host has one version and no range."""
    for key, name, fix in (
        ("driver", "driver", "install it, and restart the host so that it is loaded"),
        ("rocm", "ROCm", "install it"),
    ):
        exact, found = wanted.get(f"{key}_version"), facts.get(key)
        if exact and found != exact:
            yield f"its {name} is {found or 'unknown'}, planned is {exact}: {fix}"


def _fabric(wanted: Facts, facts: Facts) -> Iterator[str]:
    """Whether the fabric manager of a host with NVSwitches is that of the driver."""
    if not wanted.get("fabric_manager"):
        return
    found, driver = facts.get("fabric_manager"), facts["driver"]
    if found != driver:
        yield (
            f"its fabric manager is {found or 'missing'}, its driver is {driver}: CUDA fails with error 802; "
            "install the fabric manager of exactly the driver's version"
        )


def _no_gpus(wanted: Facts, facts: Facts) -> str:
    vendor = wanted["gpu_vendor"]
    if facts.get("vendor"):
        seen = ", ".join(sorted({str(gpu["name"]) for gpu in facts["gpus"]}))
        return f"has GPUs of {facts['vendor']} ({seen}), its class has {wanted['gpu_count']} of {vendor}"
    why = (facts.get("problems") or {}).get(vendor) or f"{_TOOLS[vendor]} lists no GPU"
    if "not found" in why:
        return f"{why}: {_install(wanted)}"
    if "version mismatch" in why:
        return f"{why}: restart the host, so that the installed driver is loaded"
    return f"{why}: look for the driver in the kernel's log (dmesg), repair or {_install(wanted)}"


def _install(wanted: Facts) -> str:
    floor = wanted.get("driver_min")
    driver = f"install the driver, {floor} or newer" if floor else "install the driver"
    if wanted["gpu_vendor"] == "amd":
        floor = wanted.get("rocm_min")
        return f"{driver}, and ROCm{f' {floor} or newer' if floor else ''}"
    return driver


def _kind(wanted: Facts, gpus: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Whether they are the GPUs of the class."""
    if len(gpus) != wanted["gpu_count"]:
        missing = len(gpus) < wanted["gpu_count"]
        fix = "look for the missing ones in the kernel's log (dmesg)" if missing else "choose the class of that size"
        yield f"has {_gpus(len(gpus))}, its class has {wanted['gpu_count']}: {fix}"
    others = _seen(gpu["name"] for gpu in gpus if not is_named(gpu["name"], wanted["gpu_name"]))
    if "gpu_name" in wanted and others:
        yield f"its GPU is {others}, that of its class is {wanted['gpu_name']}: choose the class of that GPU"
    archs = _seen(gpu["arch"] for gpu in gpus if gpu["arch"] != wanted["gpu_arch"])
    if archs:
        yield f"its GPU is of the architecture {archs}, its class is of {wanted['gpu_arch']}: choose another class"
    floor = wanted.get("gpu_memory_gib_min")
    if floor is not None and gpus:
        sizes = [gpu["memory_mib"] for gpu in gpus]
        if None in sizes:
            yield f"the memory of a GPU is unknown: {_TOOLS[wanted['gpu_vendor']]} does not say it, repair the driver"
        elif min(sizes) / 1024 < floor:
            yield (
                f"a GPU has {min(sizes) / 1024:.1f} GiB of memory, its class needs {floor:.1f}: choose the class of "
                "that GPU, or end its partitions"
            )


def _software(wanted: Facts, facts: Facts) -> Iterator[str]:
    """Whether driver and libraries are new enough."""
    driver, floor = facts["driver"], wanted.get("driver_min")
    if floor and not driver:
        yield f"needs the driver {floor} or newer: the version of its own is unknown; {_install(wanted)}"
    elif floor and version_key(driver) < version_key(floor):
        yield f"needs the driver {floor} or newer: it has {driver}; install driver >= {floor}"
    ceiling = wanted.get("driver_below")
    if ceiling and driver and version_key(driver) >= version_key(ceiling):
        yield (
            f"needs a driver below {ceiling}: it has {driver}, with which no engine has been judged (errors 803, 804); "
            f"install an older driver, or raise driver_below in recipes/drivers.yml"
        )
    cuda = wanted.get("cuda_min")
    if cuda and wanted["gpu_vendor"] == "nvidia":
        supported = facts["cuda"]
        fix = f"install driver >= {floor}" if floor else f"install a driver for CUDA {cuda}"
        if not supported:
            yield f"needs CUDA {cuda} or newer: nvidia-smi does not say what the driver {driver} supports; {fix}"
        elif version_key(supported) < version_key(cuda):
            yield f"needs CUDA {cuda} or newer: the driver {driver} supports {supported}; {fix}"
    least, rocm = wanted.get("rocm_min"), facts.get("rocm")
    if least and (not rocm or version_key(rocm) < version_key(least)):
        yield f"needs ROCm {least} or newer: it has {rocm or 'none in /opt/rocm'}; install ROCm >= {least}"


def _system(wanted: Facts, facts: Facts) -> Iterator[str]:
    """Whether the operating system is new enough."""
    least, found = wanted.get("glibc_min"), facts.get("glibc")
    if least and (not found or version_key(found) < version_key(least)):
        yield f"needs glibc {least} or newer: it has {found or 'none'}; use a newer release of the operating system"

    pythons, had = wanted.get("python"), facts.get("python")
    if pythons and had is not None and not set(pythons) & set(had):
        yield (
            f"needs Python {' or '.join(pythons)}: it has {', '.join(had) or 'none'} in /usr/bin; use an image of a "
            "distribution that brings one, or install it"
        )


def _health(facts: Facts) -> Iterator[str]:
    """Whether the GPUs work; what a GPU cannot count, or a log cannot show, is no fault."""
    if errors := facts.get("ecc_uncorrected"):
        yield (
            f"has {errors} uncorrected memory errors (ECC): restart the host, and replace the GPU where they come back"
        )
    if bad := sorted(HARDWARE_XID & set(facts.get("xid") or ())):
        codes = ", ".join(str(code) for code in bad)
        yield f"its kernel has logged Xid {codes}: restart the host, and replace the GPU where it comes back"


def _gpus(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


def _seen(values: Iterator[Any]) -> str:
    return ", ".join(sorted({"unknown" if value is None else str(value) for value in values}))
