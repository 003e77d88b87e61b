"""Stand-ins for ``nvidia-smi``, ``rocm-smi`` and ``amd-smi``: a lab host that says it has GPUs of a class.

They answer just what :mod:`vllm_fleet.on_host.gpu_facts` asks and fail on all else as the real tools do. There is no
GPU: they are for what is decided before an engine starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lab.gpu import scripts
from lab.rootfs import File
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import catalogue

_FOLDER = "usr/local/bin"
#: NVIDIA's driver on a healthy host.
DRIVER = "580.159.03"


@dataclass(frozen=True)
class Gpus:
    """What the tools of one host say.

    Attributes:
        vendor: ``nvidia`` or ``amd``.
        name: the name of each GPU.
        memory_bytes: the memory of each GPU.
        arch: the compute capability, such as ``9.0``; for AMD, the gfx name.
        count: how many there are.
        driver: the version of the kernel driver.
        cuda: the highest CUDA version that the driver supports; NVIDIA only.
        rocm: the installed version of ROCm; AMD only. None: there is none.
        ecc_uncorrected: such errors on the first GPU; None where the GPU has no ECC. NVIDIA only.
        xid: codes in the kernel's log; NVIDIA only.
        mec: the MEC firmware; AMD only.
        fabric_manager: the version of NVIDIA's fabric manager; None: there is none.
        broken: what the tool says, and nothing else, where its driver does not work.
    """

    vendor: str
    name: str
    memory_bytes: int
    arch: str
    count: int
    driver: str
    cuda: str = "13.0"
    rocm: str | None = "7.0.2"
    ecc_uncorrected: int | None = 0
    xid: tuple[int, ...] = ()
    mec: int = 0
    fabric_manager: str | None = None
    broken: str = ""


@cache
def _table() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    table: Mapping[str, Mapping[str, Mapping[str, Any]]] = yaml.safe_load(
        (Path(__file__).parent / "families.yml").read_text(encoding="utf-8")
    )
    return table


def families() -> frozenset[str]:
    """The families that there are answers of."""
    return frozenset(name for rows in _table().values() for name in rows)


def gpus(sized_class: str) -> Gpus:
    """A healthy host of a class such as ``h200-8``.

    Raises:
        FleetError: there are no answers of its family.
    """
    family, _, count = sized_class.rpartition("-")
    if row := _table()["nvidia"].get(family):
        return Gpus(
            vendor="nvidia",
            name=row["name"],
            memory_bytes=row["memory_mib"] << 20,
            arch=row["compute_cap"],
            count=int(count),
            driver=DRIVER,
            ecc_uncorrected=0 if row.get("ecc", True) else None,
            fabric_manager=DRIVER if int(count) in catalogue.load().drivers.classes[family].fabric_manager else None,
        )
    if row := _table()["amd"].get(family):
        return Gpus(
            vendor="amd",
            name=row["name"],
            memory_bytes=row["memory_bytes"],
            arch=row["gfx"],
            count=int(count),
            driver="6.14.14",
            mec=row["mec"],
        )
    raise FleetError(f"no tools stand in for {sized_class!r}", f"families: {', '.join(sorted(families()))}")


def files(host: Gpus) -> dict[str, File]:
    """Path on the host -> file: the tools that say this, and what ROCm leaves on the disk."""
    if host.vendor == "nvidia":
        found = {
            f"{_FOLDER}/nvidia-smi": File(scripts.nvidia_smi(host), 0o755),
            # A container sees the log of the machine that it runs on, whose GPUs are not these.
            f"{_FOLDER}/dmesg": File(scripts.dmesg(host), 0o755),
        }
        if host.fabric_manager:
            found[f"{_FOLDER}/nv-fabricmanager"] = File(scripts.fabric_manager(host), 0o755)
        return found
    found = {
        f"{_FOLDER}/rocm-smi": File(scripts.rocm_smi(host), 0o755),
        f"{_FOLDER}/amd-smi": File(scripts.amd_smi(host), 0o755),
    }
    if host.rocm:
        found["opt/rocm/.info/version"] = File(f"{host.rocm}-56\n")
    return found


def tools(sized_class: str) -> dict[str, File]:
    """Path on the host -> file, for a healthy host of a class such as ``mi300x-8``.

    Raises:
        FleetError: there are no answers of its family.
    """
    return files(gpus(sized_class))
