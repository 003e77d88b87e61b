"""What the programs of ``on_host`` print, as strict records: a host is a stranger, so each key is checked.

An answer that is no such record is the state of the host that gave it; the other hosts do not notice.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from vllm_fleet.base.foreign_text import CleanText, Foreign, clean_text
from vllm_fleet.facts.states import NEIGHBOURS, DriftState, VetoCode

#: The vetoes that the probe itself may report; all others follow from the facts, on the controller.
PROBED_VETOES = frozenset(
    {
        VetoCode.TOO_FEW_CORES,
        VetoCode.NO_CPU_FLAG,
        VetoCode.TOO_LITTLE_MEMORY,
        VetoCode.WRONG_MACHINE,
        VetoCode.WRONG_SYSTEM,
        *NEIGHBOURS,
    }
)
#: Why a vendor's tools list no GPU.
PROBLEMS = frozenset(
    {
        VetoCode.NO_DRIVER,
        VetoCode.DRIVER_NOT_LOADED,
        VetoCode.DRIVER_MISMATCH,
        VetoCode.TOOL_FAILED,
        VetoCode.TOOL_HANGS,
        VetoCode.NO_GPUS,
        VetoCode.GPU_LOST,
    }
)
Vendor = Literal["nvidia", "amd"]
#: A name or a version.
Word = Annotated[str, StringConstraints(max_length=128), AfterValidator(clean_text)]
Words = Annotated[list[Word], Field(max_length=64)]
#: Vendor and device of a PCI device.
PciId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{4}:[0-9a-f]{4}$")]
Count = Annotated[int, Field(ge=0, le=2**53)]
#: An Ed25519 key as sshd writes it. Nothing else may get into ``known_hosts``.
PublicKey = Annotated[str, StringConstraints(pattern=r"^ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43}$")]


def _probed(code: VetoCode) -> VetoCode:
    if code not in PROBED_VETOES:
        raise ValueError(f"the probe does not report {code}")
    return code


def _problem(code: VetoCode) -> VetoCode:
    if code not in PROBLEMS:
        raise ValueError(f"{code} is no reason why a tool lists no GPU")
    return code


class Gpu(Foreign):
    """One GPU."""

    name: Word | None
    memory_mib: Count | None
    arch: Word | None


class Problem(Foreign):
    """Why the tools of a vendor list no GPU."""

    state: Annotated[VetoCode, AfterValidator(_problem)]
    why: CleanText


class GpuError(Foreign):
    """One error of NVIDIA's driver in the kernel's log, as :mod:`vllm_fleet.on_host.kernel_log` finds it."""

    kind: Literal["xid", "sxid", "rm_init", "off_bus"]
    code: Count
    device: Word
    detail: Word


class ContainerEngine(Foreign):
    """The container engine that is installed: its package, ``snap`` or ``other``; None for none."""

    package: Word | None
    version: Word | None


class OperatingSystem(Foreign):
    """The name and version of the distribution."""

    id: Word | None
    version: Word | None


class HostFacts(Foreign):
    """The facts of a host, as :func:`vllm_fleet.on_host.gpu_facts.read_facts` describes them; None is unknown."""

    vendor: Vendor | None
    gpus: Annotated[list[Gpu], Field(max_length=1024)]
    problems: dict[Vendor, Problem] = Field(default_factory=dict)
    driver: Word | None = None
    cuda: Word | None = None
    rocm: Word | None = None
    fabric_manager: Word | None = None
    mec_firmware: Count | None = None
    ecc_uncorrected: Count | None = None
    xid: Annotated[list[Count], Field(max_length=4096)] | None = None
    mig_gpus: Count | None = None
    fabric_states: Words | None = None
    recovery_actions: Words | None = None
    remap_pending: Count | None = None
    remap_failed: Count | None = None
    nvlinks: Count | None = None
    gpu_errors: Annotated[list[GpuError], Field(max_length=64)] | None = None
    pci_gpus: Annotated[dict[PciId, Count], Field(max_length=1024)] | None = None
    nvswitches: Count | None = None
    kernel_driver: dict[Vendor, Word | None] | None = None
    nouveau: bool | None = None
    secure_boot: bool | None = None
    module_key_enrolled: bool | None = None
    kernel: Word | None = None
    kernel_headers: bool | None = None
    next_kernel: Word | None = None
    next_kernel_headers: bool | None = None
    next_kernel_driver: dict[Vendor, bool] | None = None
    iommu: Literal["off", "passthrough", "translated"] | None = None
    acs_bridges: Count | None = None
    compute_partitions: Words | None = None
    memory_partitions: Words | None = None
    container: bool | None = None
    cloud_init: Literal["none", "disabled", "running", "done", "error"] | None = None
    docker: ContainerEngine | None = None
    machine: Word | None = None
    cpu_count: Count | None = None
    memory_gib: Annotated[float, Field(ge=0, le=2**53)] | None = None
    glibc: Word | None = None
    python: Annotated[list[Word], Field(max_length=64)] | None = None
    os: OperatingSystem | None = None


class DriftItem(Foreign):
    """One item of the manifest that differs; role, kind and name must be those of the manifest."""

    role: str
    kind: str
    what: str
    state: DriftState
    why: CleanText


class ProbedVeto(Foreign):
    """A fact of the class that the host does not have."""

    code: Annotated[VetoCode, AfterValidator(_probed)]
    why: CleanText


class ProbeAnswer(Foreign):
    """What ``on_host/probe.py`` prints; ``facts`` where the manifest names a vendor of GPUs."""

    drift: list[DriftItem]
    veto: list[ProbedVeto]
    facts: HostFacts | None = None


class HostKeys(Foreign):
    """What ``on_host/ssh_host_key.py`` prints: the key that sshd uses, and the one that is ready to be installed."""

    current: PublicKey
    next: PublicKey | None


#: A path may be longer than a word.
_Name = Annotated[str, StringConstraints(max_length=4096), AfterValidator(clean_text)]


class Applied(Foreign):
    """The answer of ``host_apply``.

    Attributes:
        applied: the items that it has applied.
        left: the item at which it has stopped -> why.
        diffs: the differences of files: path, old and new content.
    """

    applied: Annotated[list[_Name], Field(max_length=4096)]
    left: Annotated[dict[_Name, CleanText], Field(max_length=4096)]
    diffs: Annotated[list[dict[str, str]], Field(max_length=4096)]
