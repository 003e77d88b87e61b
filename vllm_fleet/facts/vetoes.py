"""Facts of a host against those of its class: what is wrong, and what to do about it.

:mod:`vllm_fleet.on_host.gpu_facts` reads the facts, :func:`manifest.wanted_facts` names those of the class, and
``recipes/gpu_errors.yml`` says what an error of the driver means. A fact that is wanted and unknown is a veto too; a
fault that the host cannot notice is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_fleet.base.versions import version_key
from vllm_fleet.catalogue import catalogue
from vllm_fleet.facts import gpu_errors
from vllm_fleet.facts.states import VetoCode
from vllm_fleet.on_host.gpu_facts import INTEGRATED

Facts = Mapping[str, Any]
_ACCELERATORS = {"nvidia": "cuda", "amd": "rocm"}
_TOOLS = {"nvidia": "nvidia-smi", "amd": "rocm-smi"}
#: How the devices of a vendor begin on the PCI bus.
_PCI_VENDORS = {"nvidia": "10de:", "amd": "1002:"}
_INSPECT = "{why}: look for the driver in the kernel's log (dmesg), repair or {install}"
#: Code -> its text. Programs read the code.
TEXTS: Mapping[VetoCode, str] = {
    VetoCode.NO_DRIVER: "{why}: {install}",
    VetoCode.DRIVER_MISMATCH: "{why}: restart the host, so that the installed driver is loaded",
    VetoCode.DRIVER_NOT_LOADED: _INSPECT,
    VetoCode.TOOL_FAILED: _INSPECT,
    VetoCode.TOOL_HANGS: _INSPECT,
    VetoCode.GPU_LOST: (
        "{why}: restart the host; open a ticket for the GPU if it is lost again. No driver is installed, since one is "
        "there"
    ),
    VetoCode.NO_GPUS: _INSPECT,
    VetoCode.NO_GPU_ON_BUS: (
        "its PCI bus has no GPU of {vendor}, its class has {count}: choose the class of its hardware, or look for the "
        "GPUs in the firmware and in the settings of the virtual machine"
    ),
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
    VetoCode.FABRIC_NOT_READY: (
        "the NVLink network has not taken its GPUs up ({state}): CUDA fails with error 802; look at the fabric manager "
        "of the rack or of the hypervisor, since this host has no switches"
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
        "needs Python {wanted}: it has {versions} in /usr/bin; {engines}set 'install: docker', use an image of a "
        "distribution that brings one, or install it"
    ),
    VetoCode.ECC_ERRORS: (
        "has {errors} uncorrected memory errors (ECC): restart the host, and replace the GPU if they return"
    ),
    VetoCode.XID_ERRORS: "its kernel has logged {errors}: {fix}",
    VetoCode.SXID_ERRORS: "its kernel has logged {errors}: {fix}",
    VetoCode.ADAPTER_FAILED: (
        "its driver cannot start the GPU at {devices} (RmInitAdapter failed): restart the host, and replace the GPU if "
        "it returns"
    ),
    VetoCode.RECOVERY_NEEDED: "its driver asks for an action on a GPU ({actions}): {fix}",
    VetoCode.ROWS_PENDING: (
        "rows of the memory of {gpus} wait for a reset to be remapped: reset the GPU (nvidia-smi --gpu-reset), or "
        "restart the host"
    ),
    VetoCode.ROWS_FAILED: "{gpus} cannot remap broken rows of memory any more: replace the GPU",
    VetoCode.MIG_ENABLED: (
        "{gpus} of {count} in MIG mode, of which a model sees a part: turn it off with 'nvidia-smi -mig 0', and "
        "restart the host if the GPU is in use"
    ),
    VetoCode.GPU_PARTITIONED: (
        "its GPUs are partitioned ({modes}), so that a model sees a part of each: set them to {wanted} with {fix}"
    ),
    VetoCode.NOUVEAU_LOADED: (
        "the kernel's driver nouveau holds the GPUs: write 'blacklist nouveau' into /etc/modprobe.d/nouveau.conf, run "
        "'update-initramfs -u', and restart the host"
    ),
    VetoCode.SECURE_BOOT: (
        "Secure Boot is on, and the key that DKMS signs modules with is not enrolled, so that the kernel would refuse "
        "the driver: enrol it with 'mokutil --import' and a restart, use a driver that the distribution signs, or turn "
        "Secure Boot off"
    ),
    VetoCode.KERNEL_TOO_NEW: (
        "the driver {driver} builds for kernels below {ceiling}, and the host {verb} {kernel}: boot an older kernel, "
        "such as the distribution's first, or plan a newer driver"
    ),
    VetoCode.NO_KERNEL_DRIVER: (
        "the kernel {kernel}, which boots next, has no driver: install its headers so that DKMS builds one "
        "(linux-headers-{kernel}), or remove that kernel"
    ),
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
    return [gpu for gpu in facts.get("gpus") or () if gpu["arch"] not in INTEGRATED]


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
        if _is_repairable(wanted, facts):
            return (*_obstacles(wanted, facts), *_logged(facts))
        return (_no_gpus(wanted, facts), *_nouveau(wanted, facts), *_health(wanted, facts))
    gpus = counted_gpus(facts)
    software = () if wanted.get("driver_role") else find_driver_faults(wanted, facts)
    partitions = tuple(_partitions(facts, len(gpus)))
    # Parts of a GPU are not its class: their number and memory say nothing more.
    kind = () if partitions else tuple(_kind(wanted, gpus))
    return (
        *kind,
        *partitions,
        *software,
        *_network(wanted, facts),
        *_system(wanted, facts),
        *_health(wanted, facts),
        *_next_start(wanted, facts),
    )


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


#: States of a host on which the driver is missing or not the right one, also where its kernel has loaded one.
_DRIVER_STATES = frozenset({VetoCode.NO_DRIVER, VetoCode.DRIVER_NOT_LOADED, VetoCode.DRIVER_MISMATCH})


def _is_repairable(wanted: Facts, facts: Facts) -> bool:
    """Whether a host that lists no GPU may only lack the driver that a role installs.

    A tool that fails although the kernel has loaded a driver, or that has lost a GPU, is not: a driver is there.
    """
    if not wanted.get("driver_role") or facts.get("vendor"):
        return False
    state = VetoCode(_problem(wanted, facts)["state"])
    if state is VetoCode.GPU_LOST or _has_none_on_bus(wanted, facts):
        return False
    loaded = (facts.get("kernel_driver") or {}).get(wanted["gpu_vendor"])
    return state in _DRIVER_STATES or not loaded


def _has_none_on_bus(wanted: Facts, facts: Facts) -> bool:
    """Whether the PCI bus is known to have no GPU of the class's vendor."""
    listed = facts.get("pci_gpus")
    return listed is not None and not gpus_of_vendor(listed, wanted["gpu_vendor"])


def gpus_of_vendor(listed: Mapping[str, int], vendor: str) -> Mapping[str, int]:
    """The GPUs of one vendor among those on a PCI bus.

    Args:
        listed: ``vendor:device`` -> their number.
        vendor: ``nvidia`` or ``amd``.
    """
    return {name: count for name, count in listed.items() if name.startswith(_PCI_VENDORS[vendor])}


def _problem(wanted: Facts, facts: Facts) -> Mapping[str, str]:
    """Why the tools of the class's vendor list no GPU."""
    vendor = wanted["gpu_vendor"]
    none = {"state": VetoCode.NO_GPUS, "why": f"{_TOOLS[vendor]} lists no GPU"}
    return (facts.get("problems") or {}).get(vendor) or none


def _obstacles(wanted: Facts, facts: Facts) -> Iterator[Veto]:
    """Why the driver that a role would install could not be loaded."""
    if facts.get("secure_boot") and facts.get("module_key_enrolled") is not True:
        yield _veto(VetoCode.SECURE_BOOT)
    yield from _kernels(wanted, facts)


def _kernels(wanted: Facts, facts: Facts) -> Iterator[Veto]:
    """Whether the driver that a role installs builds for the kernel that runs, and for the one that boots next."""
    ceiling = wanted.get("kernel_below")
    kernels = (("runs", facts.get("kernel")), ("boots next", facts.get("next_kernel")))
    for verb, kernel in kernels if ceiling else ():
        if kernel and version_key(kernel) >= version_key(str(ceiling)):
            driver = wanted.get("driver_version")
            yield _veto(VetoCode.KERNEL_TOO_NEW, driver=driver, ceiling=ceiling, verb=verb, kernel=kernel)
            return


def _next_start(wanted: Facts, facts: Facts) -> Iterator[Veto]:
    """Whether the host comes back with its driver when it restarts, also after a role has changed the driver."""
    managed = wanted.get("driver_role")
    if managed and wanted.get("driver_version") != facts.get("driver"):
        yield from _obstacles(wanted, facts)
        return
    following = facts.get("next_kernel")
    drivers = facts.get("next_kernel_driver") or {}
    # A driver that a role installs is DKMS's; AMD's in an image may be the kernel's own.
    asked = wanted["gpu_vendor"] == "nvidia" or managed
    if asked and following != facts.get("kernel") and drivers.get(wanted["gpu_vendor"]) is False:
        yield _veto(VetoCode.NO_KERNEL_DRIVER, kernel=following)


def _nouveau(wanted: Facts, facts: Facts) -> Iterator[Veto]:
    """Whether nouveau holds the GPUs of a host on which no role installs NVIDIA's driver."""
    if wanted["gpu_vendor"] == "nvidia" and facts.get("nouveau"):
        yield _veto(VetoCode.NOUVEAU_LOADED)


def find_driver_faults(wanted: Facts, facts: Facts) -> tuple[Veto, ...]:
    """What is wrong with the driver, its libraries and its fabric manager."""
    return (*_exact(wanted, facts), *_software(wanted, facts), *_fabric(wanted, facts))


def _exact(wanted: Facts, facts: Facts) -> Iterator[Veto]:
    """Whether driver and ROCm have exactly the planned version, where a role installs them."""
    for key, code in (("driver", VetoCode.WRONG_DRIVER), ("rocm", VetoCode.WRONG_ROCM)):
        planned, version = wanted.get(f"{key}_version"), facts.get(key)
        if planned and version != planned:
            yield _veto(code, version=version or "unknown", planned=planned)


#: States of a GPU that its NVLink network has not taken up, as nvidia-smi spells them.
_WAITING = ("Not Started", "In Progress")


def _has_switches(wanted: Facts, facts: Facts) -> bool:
    """Whether a host has NVSwitches of its own: by its class, unless it reports that it has none."""
    return bool(wanted.get("fabric_manager")) and facts.get("nvswitches") != 0


def _network(wanted: Facts, facts: Facts) -> Iterator[Veto]:
    """Whether a network whose switches are outside the host has taken the GPUs up; no role can repair it."""
    waiting = [state for state in facts.get("fabric_states") or () if state in _WAITING]
    if waiting and not _has_switches(wanted, facts):
        yield _veto(VetoCode.FABRIC_NOT_READY, state=", ".join(waiting))


def _fabric(wanted: Facts, facts: Facts) -> Iterator[Veto]:
    """Whether the fabric manager of a host with NVSwitches has the driver's version."""
    # Switches that the host does not have need no manager: cards with bridges, or a board whose switches are elsewhere.
    if not _has_switches(wanted, facts):
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
    problem = _problem(wanted, facts)
    if problem["state"] != VetoCode.GPU_LOST and _has_none_on_bus(wanted, facts):
        return _veto(VetoCode.NO_GPU_ON_BUS, vendor=vendor, count=wanted["gpu_count"])
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
        fitting = _engines_on(wanted["gpu_vendor"], versions)
        engines = f"use an engine that runs on it ({', '.join(fitting)}), " if fitting else ""
        shown = ", ".join(versions) or "none"
        yield _veto(VetoCode.NO_PYTHON, wanted=" or ".join(pythons), versions=shown, engines=engines)


def _engines_on(vendor: str, versions: Sequence[str]) -> list[str]:
    """The engines of a vendor whose wheels run on one of these versions of Python, the newest first."""
    fitting = [
        engine
        for engine in catalogue.load().engines.values()
        if engine.wheel and engine.accelerator == _ACCELERATORS[vendor] and set(engine.wheel.python) & set(versions)
    ]
    return [engine.id for engine in sorted(fitting, key=lambda engine: version_key(engine.release), reverse=True)]


def _partitions(facts: Facts, count: int) -> Iterator[Veto]:
    """Whether a model would see whole GPUs."""
    if parts := facts.get("mig_gpus"):
        yield _veto(VetoCode.MIG_ENABLED, gpus=_gpus(parts), count=count)
    compute = [mode for mode in facts.get("compute_partitions") or () if mode != "SPX"]
    memory = [mode for mode in facts.get("memory_partitions") or () if mode != "NPS1"]
    if facts.get("vendor") == "amd" and (compute or memory):
        orders = ["'amd-smi set --compute-partition SPX'"] if compute else []
        orders += ["'amd-smi set --memory-partition NPS1'"] if memory else []
        wanted = " and ".join((["SPX"] if compute else []) + (["NPS1"] if memory else []))
        modes = ", ".join([*compute, *memory])
        yield _veto(VetoCode.GPU_PARTITIONED, modes=modes, wanted=wanted, fix=" and ".join(orders))


_FIXES = {
    "reset_gpu": "restart the host, and replace the GPU if it returns",
    "reboot": "restart the host, and replace the GPU if it returns",
    "contact": "restart the host, and open a ticket with the vendor if it returns",
}


def _logged(facts: Facts) -> Iterator[Veto]:
    """Whether the kernel has logged an error of the hardware since it started."""
    logged = facts.get("gpu_errors")
    if logged is None:
        logged = [{"kind": "xid", "code": code} for code in facts.get("xid") or ()]
    for kind, code in (("xid", VetoCode.XID_ERRORS), ("sxid", VetoCode.SXID_ERRORS)):
        if grave := gpu_errors.judge_errors(logged, kind):
            shown = ", ".join(map(str, grave[:4])) + (", and more" if len(grave) > 4 else "")
            yield _veto(code, errors=shown, fix=_FIXES[grave[0].action])


def _health(wanted: Facts, facts: Facts) -> Iterator[Veto]:
    """Whether the GPUs report errors of the hardware. An unknown count or log is not an error."""
    if errors := facts.get("ecc_uncorrected"):
        yield _veto(VetoCode.ECC_ERRORS, errors=errors)
    yield from _logged(facts)
    # A start that failed and was repeated is no fault; all GPUs are there.
    failed = sorted({error["device"] for error in facts.get("gpu_errors") or () if error["kind"] == "rm_init"})
    if failed and len(counted_gpus(facts)) < wanted["gpu_count"]:
        yield _veto(VetoCode.ADAPTER_FAILED, devices=", ".join(failed))
    actions = {text: gpu_errors.judge_action(text) for text in facts.get("recovery_actions") or ()}
    if asked := sorted(text for text, action in actions.items() if action not in gpu_errors.HARMLESS):
        yield _veto(VetoCode.RECOVERY_NEEDED, actions=", ".join(asked), fix=_FIXES[actions[asked[0]]])
    if pending := facts.get("remap_pending"):
        yield _veto(VetoCode.ROWS_PENDING, gpus=_gpus(pending))
    if lost := facts.get("remap_failed"):
        yield _veto(VetoCode.ROWS_FAILED, gpus=_gpus(lost))


def _gpus(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


def _seen(values: Iterator[Any]) -> str:
    return ", ".join(sorted({"unknown" if value is None else str(value) for value in values}))
