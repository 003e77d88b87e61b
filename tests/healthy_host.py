"""The facts of a host of eight H100 without a fault, as the GPU facts report them."""

from __future__ import annotations

H100 = {"name": "NVIDIA H100 80GB HBM3", "memory_mib": 81559, "arch": "sm_90"}
HEALTHY = {
    "vendor": "nvidia",
    "gpus": [H100] * 8,
    "driver": "580.159.03",
    "cuda": "13.0",
    "rocm": None,
    "fabric_manager": "580.159.03",
    "glibc": "2.39",
}
