"""The GPUs of a lab host as its tools report them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpus:
    """The output of the tools of one host.

    Attributes:
        vendor: ``nvidia`` or ``amd``.
        name: the name of each GPU.
        memory_bytes: the memory of each GPU.
        arch: the compute capability, such as ``9.0``; for AMD, the gfx name.
        count: how many there are.
        driver: the version of the kernel driver.
        cuda: the highest CUDA version that the driver supports; NVIDIA only.
        rocm: the installed version of ROCm; AMD only. None: not installed.
        ecc_uncorrected: uncorrected ECC errors of the first GPU; None without ECC. NVIDIA only.
        xid: codes in the kernel's log; NVIDIA only.
        mec: the MEC firmware; AMD only.
        fabric_manager: the version of NVIDIA's fabric manager; None: not installed.
        broken: the whole output of the tool where the driver does not work.
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
