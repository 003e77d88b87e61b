"""Stand-ins for ``nvidia-smi``, ``rocm-smi`` and ``amd-smi``: a lab host that reports GPUs of a class.

They answer the queries of :mod:`vllm_fleet.on_host.gpu_facts` and fail on others, as the real tools do. There is no
GPU: they serve to test the decisions before an engine starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lab.gpu import scripts
from lab.gpu.model import Gpus as Gpus
from lab.rootfs import File
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import catalogue

_FOLDER = "usr/local/bin"
#: NVIDIA's driver on a healthy host.
DRIVER = "580.159.03"


@cache
def _table() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    table: Mapping[str, Mapping[str, Mapping[str, Any]]] = yaml.safe_load(
        (Path(__file__).parent / "families.yml").read_text(encoding="utf-8")
    )
    return table


def families() -> frozenset[str]:
    """The families with known output."""
    return frozenset(name for rows in _table().values() for name in rows)


def gpus(sized_class: str) -> Gpus:
    """A healthy host of a class such as ``h200-8``.

    Raises:
        FleetError: the output of its family is not known.
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
    """Path on the host -> file: the tools with this output, and the files of ROCm."""
    if host.vendor == "nvidia":
        nvidia = {
            f"{_FOLDER}/nvidia-smi": File(scripts.nvidia_smi(host), 0o755),
            f"{_FOLDER}/nvidia-modprobe": File(f"#!/bin/sh\n{scripts.NVIDIA_MODPROBE}", 0o755),
            # A container sees the kernel log of its machine, which has other GPUs.
            f"{_FOLDER}/dmesg": File(scripts.dmesg(host), 0o755),
        }
        if host.fabric_manager:
            nvidia[f"{_FOLDER}/nv-fabricmanager"] = File(scripts.fabric_manager(host), 0o755)
        return nvidia
    amd = {
        f"{_FOLDER}/rocm-smi": File(scripts.rocm_smi(host), 0o755),
        f"{_FOLDER}/amd-smi": File(scripts.amd_smi(host), 0o755),
    }
    if host.rocm:
        amd["opt/rocm/.info/version"] = File(f"{host.rocm}-56\n")
    return amd


def tools(sized_class: str) -> dict[str, File]:
    """Path on the host -> file, for a healthy host of a class such as ``mi300x-8``.

    Raises:
        FleetError: the output of its family is not known.
    """
    return files(gpus(sized_class))
