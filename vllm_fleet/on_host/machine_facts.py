"""The machine under the GPUs, from the files of its kernel: PCI devices, Secure Boot, kernels, and what is installed.

Standard library only, for the Python that the host has (3.8 or later); it changes nothing. No vendor's tool is needed.
An unknown fact is ``None``. In a container the kernel is that of another machine, so that its facts are unknown.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

from vllm_fleet.on_host.host_tools import (
    as_list,
    as_mapping,
    clean_text,
    list_folder,
    parse_text,
    parse_version,
    read_bytes,
    read_file,
    run_tool,
)

VENDORS = ("0x10de", "0x1002")
MODULES = {"nvidia": "nvidia", "amd": "amdgpu"}
#: PCI classes of a GPU: display, and processing accelerator, as which AMD's Instinct appears.
_GPU_CLASSES = ("0x03", "0x12")
_OTHER_BRIDGE, _PCI_BRIDGE, _INFINIBAND = "0x0680", "0x0604", "0x0207"
#: What the vital product data of the InfiniBand device contains through which the switches of HGX B200 are managed.
_SWITCH_MANAGER = b"SW_MNG"
_SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
#: Keys that DKMS signs with, on Ubuntu and elsewhere.
_MODULE_KEYS = ("/var/lib/shim-signed/mok/MOK.der", "/var/lib/dkms/mok.pub")
#: The settings that choose a kernel; of several lines the last one holds.
_GRUB_SETTING = re.compile(r"^\s*(GRUB_DEFAULT|GRUB_FLAVOUR_ORDER)=[\"']?([^\"'\n#]*)", re.M)
ENGINE_PACKAGES = ("docker-ce", "docker.io", "moby-engine", "podman-docker", "podman")
#: Facts of the machine that a container does not know.
MACHINE_FACTS = (
    "pci_gpus",
    "nvswitches",
    "kernel_driver",
    "nouveau",
    "secure_boot",
    "module_key_enrolled",
    "kernel",
    "kernel_headers",
    "next_kernel",
    "next_kernel_headers",
    "next_kernel_driver",
    "iommu",
    "acs_bridges",
    "compute_partitions",
    "memory_partitions",
)


def in_container(root: str = "/") -> bool:
    """Whether the kernel is that of another machine, as systemd and docker note it."""
    marks = ("run/systemd/container", ".dockerenv", "run/.containerenv", "run/host/container-manager")
    return any(os.path.exists(os.path.join(root, mark)) for mark in marks)


def read_pci(root: str = "/") -> tuple[dict[str, int] | None, int | None]:
    """The number of GPUs by ``vendor:device``, and of NVSwitches; None if the kernel lists no PCI device.

    The switches of HGX A100 and H100 are bridges of NVIDIA's. Those of HGX B200 are behind an InfiniBand device.
    """
    folder = os.path.join(root, "sys/bus/pci/devices")
    devices = list_folder(folder)
    if not devices:
        return None, None
    gpus: dict[str, int] = {}
    switches = 0
    for device in devices:
        kind, vendor = read_file(folder, device, "class") or "", read_file(folder, device, "vendor") or ""
        if kind.startswith(_GPU_CLASSES) and vendor in VENDORS:
            number = read_file(folder, device, "device") or ""
            if re.match(r"0x[0-9a-f]{4}$", number):
                name = vendor[2:] + ":" + number[2:]
                gpus[name] = gpus.get(name, 0) + 1
        is_switch = kind.startswith(_OTHER_BRIDGE) and vendor == "0x10de"
        if is_switch or (
            kind.startswith(_INFINIBAND) and _SWITCH_MANAGER in (read_bytes(folder, device, "vpd") or b"")
        ):
            switches += 1
    return gpus, switches


def read_acs_bridges(root: str = "/") -> int | None:
    """The number of PCI bridges that send the traffic between GPUs through the processor (ACS); None without root."""
    folder = os.path.join(root, "sys/bus/pci/devices")
    count = None
    for device in list_folder(folder):
        if not (read_file(folder, device, "class") or "").startswith(_PCI_BRIDGE):
            continue
        space = read_bytes(folder, device, "config") or b""
        if len(space) < 4096:
            # Only root reads beyond the first 64 bytes; an old bridge has no more than 256.
            continue
        count = (count or 0) + _redirects(space)
    return count


def _redirects(space: bytes) -> bool:
    """Whether the extended capability ACS (13) in a configuration space has the request redirect on."""
    place = 0x100
    for _ in range(64):
        header = int.from_bytes(space[place : place + 4], "little")
        if header & 0xFFFF == 0x000D:
            return bool(int.from_bytes(space[place + 6 : place + 8], "little") & 0b100)
        place = header >> 20
        if place < 0x100:
            return False
    return False


def read_iommu(root: str = "/") -> str | None:
    """``off``, ``passthrough`` or ``translated``: what the IOMMU does with the memory access of devices."""
    if not os.path.isdir(os.path.join(root, "sys/class/iommu")):
        return None
    if not list_folder(root, "sys/class/iommu"):
        return "off"
    groups = os.path.join(root, "sys/kernel/iommu_groups")
    types = {read_file(groups, group, "type") for group in list_folder(groups)[:512]}
    if not types - {None}:
        return None
    return "passthrough" if types - {None} == {"identity"} else "translated"


def read_secure_boot(root: str = "/") -> bool | None:
    """Whether the firmware enforces signatures, so that the kernel refuses unsigned modules."""
    if not os.path.isdir(os.path.join(root, "sys/firmware/efi")):
        return False
    value = read_bytes(root, _SECURE_BOOT)
    # Four bytes of attributes, then the value.
    return bool(value[4]) if value and len(value) >= 5 else None


def read_key_enrolled() -> bool | None:
    """Whether the key that DKMS signs with is enrolled in the firmware; None if there is no key or no mokutil."""
    for path in _MODULE_KEYS:
        if os.path.isfile(path):
            answer = run_tool("mokutil", "--test-key", path)
            if answer.state == "no_driver":
                return None
            return "already enrolled" in answer.out + answer.text
    return None


def read_next_kernel(root: str = "/") -> str | None:
    """The kernel that boots next: the newest in /boot where GRUB takes its first entry; otherwise it is unknown."""
    texts = [read_file(root, "etc/default/grub")]
    folder = os.path.join(root, "etc/default/grub.d")
    texts += [read_file(folder, name) for name in list_folder(folder) if name.endswith(".cfg")]
    values = dict(_GRUB_SETTING.findall("\n".join(text for text in texts if text)))
    if values.get("GRUB_DEFAULT", "").strip() != "0" or values.get("GRUB_FLAVOUR_ORDER", "").strip():
        return None
    kernels = [name.split("-", 1)[1] for name in list_folder(root, "boot") if re.match(r"vmlinu[xz]-\d", name)]
    return clean_text(max(kernels, key=_kernel_order), 128) if kernels else None


def _kernel_order(version: str) -> list[int]:
    return [int(number[:9]) for number in re.findall(r"\d+", version)]


def has_headers(kernel: str | None, root: str = "/") -> bool | None:
    """Whether the headers of a kernel are installed, which DKMS needs; None for an unknown kernel."""
    if not kernel:
        return None
    # A distribution's link may point to a folder that its package would bring.
    return os.path.exists(os.path.join(root, "lib/modules", kernel, "build", "Makefile"))


def has_driver(kernel: str | None, root: str = "/") -> dict[str, bool] | None:
    """For each vendor, whether a kernel has its driver; for AMD that of DKMS, since every kernel has amdgpu itself."""
    listed = read_bytes(root, "lib/modules", kernel, "modules.dep", limit=8 << 20) if kernel else None
    if listed is None:
        return None
    # Its lines begin with the path of a module.
    nvidia = re.search(rb"^[^:\n]*/nvidia\.ko", listed, re.M)
    amd = re.search(rb"^(?:updates|extra|weak-updates)/[^:\n]*amdgpu\.ko", listed, re.M)
    return {"nvidia": bool(nvidia), "amd": bool(amd)}


def read_kernel_driver(root: str = "/") -> dict[str, str | None]:
    """For each vendor, the version of the driver that the kernel has loaded; ``unknown`` without a version."""
    versions: dict[str, str | None] = {}
    for vendor, module in MODULES.items():
        loaded = os.path.isdir(os.path.join(root, "sys/module", module))
        version = parse_version(read_file(root, "sys/module", module, "version"))
        versions[vendor] = (version or "unknown") if loaded else None
    return versions


def read_partitions(name: str, root: str = "/") -> list[str] | None:
    """The partition modes of AMD's GPUs, each once; None if the driver has none.

    Args:
        name: ``current_compute_partition`` or ``current_memory_partition``.
        root: the root of the file system.
    """
    folder = os.path.join(root, "sys/class/drm")
    modes = set()
    for card in list_folder(folder):
        if re.match(r"card\d+$", card):
            mode = parse_text(read_file(folder, card, "device", name))
            if mode and re.match(r"[A-Z0-9]{2,8}$", mode):
                modes.add(mode)
    return sorted(modes) or None


def read_cloud_init(root: str = "/") -> str:
    """``none``, ``disabled``, ``running``, ``done`` or ``error``: how far the first boot is."""
    folder = os.path.join(root, "run/cloud-init")
    if not os.path.isdir(folder):
        return "none"
    if os.path.exists(os.path.join(folder, "disabled")):
        return "disabled"
    try:
        result = json.loads(read_file(folder, "result.json") or "null")
    except (ValueError, RecursionError):
        result = None
    if not isinstance(result, dict):
        # An image of a container may bring the folder without the service.
        return "running" if os.path.exists(os.path.join(folder, "status.json")) else "none"
    return "error" if as_list(as_mapping(result.get("v1")).get("errors")) else "done"


def read_docker() -> dict[str, str | None]:
    """Which container engine is installed: ``package`` (``snap``, ``other`` or a name, None for none), ``version``."""
    rows = run_tool("dpkg-query", "-W", "-f=${Package} ${Version} ${db:Status-Status}\n", *ENGINE_PACKAGES)
    if not rows.out and rows.state == "no_driver":
        rows = run_tool("rpm", "-q", "--queryformat=%{NAME} %{VERSION} installed\n", *ENGINE_PACKAGES)
    installed = {}
    for line in rows.out.splitlines()[:64]:
        words = line.split()
        if len(words) == 3 and words[2] == "installed" and words[0] in ENGINE_PACKAGES:
            installed[words[0]] = clean_text(words[1], 64)
    for name in ENGINE_PACKAGES:
        if name in installed:
            return {"package": name, "version": installed[name]}
    if os.path.exists("/snap/bin/docker"):
        return {"package": "snap", "version": None}
    version = re.search(r"version (\d[\w.+~-]{0,40})", run_tool("docker", "--version").out)
    return {"package": "other" if version else None, "version": version.group(1) if version else None}


def read_machine() -> dict[str, Any]:
    """The facts of :data:`MACHINE_FACTS`, ``container``, ``cloud_init`` and ``docker``."""
    facts: dict[str, Any] = dict.fromkeys(MACHINE_FACTS)
    facts.update(container=in_container(), cloud_init=read_cloud_init(), docker=read_docker())
    if facts["container"]:
        return facts
    facts["pci_gpus"], facts["nvswitches"] = read_pci()
    kernel, following = os.uname().release, read_next_kernel()
    facts.update(
        kernel=clean_text(kernel, 128),
        kernel_headers=has_headers(kernel),
        next_kernel=following,
        next_kernel_headers=has_headers(following),
        next_kernel_driver=has_driver(following),
        kernel_driver=read_kernel_driver(),
        nouveau=os.path.isdir("/sys/module/nouveau"),
        secure_boot=read_secure_boot(),
        module_key_enrolled=read_key_enrolled(),
        iommu=read_iommu(),
        acs_bridges=read_acs_bridges(),
        compute_partitions=read_partitions("current_compute_partition"),
        memory_partitions=read_partitions("current_memory_partition"),
    )
    return facts
