"""Each fact of a host: the question, where its answer is read, and what it decides. docs/facts.md is made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One fact.

    Attributes:
        text: the question that it answers.
        read_from: the files and commands on the host.
        decides: what it is for; a code in code type is a veto.
    """

    text: str
    read_from: str
    decides: str


_SMI = "`nvidia-smi --query-gpu`"
QUESTIONS: Mapping[str, Question] = {
    "vendor": Question("whose tools list GPUs?", "`nvidia-smi`, `rocm-smi`, `amd-smi`", "`wrong_vendor`"),
    "gpus": Question("name, memory and architecture of each GPU?", f"{_SMI}; `rocm-smi`, `amd-smi`, kfd", "the class"),
    "problems": Question(
        "why do tools list no GPU?", "their text and exit status", "a veto of that state, or a repair"
    ),
    "driver": Question("which version of the driver is loaded?", f"{_SMI}; `rocm-smi`, `amd-smi`", "`driver_too_old`"),
    "cuda": Question("which CUDA does the driver support?", "the header of `nvidia-smi`", "`cuda_too_old`"),
    "rocm": Question("which ROCm is installed?", "`/opt/rocm/.info/version`", "`rocm_too_old`"),
    "fabric_manager": Question("which fabric manager is installed?", "`nv-fabricmanager --version`", "its version"),
    "mec_firmware": Question(
        "the oldest MEC firmware of a GPU?", "`rocm-smi`, `amd-smi`, kfd", "a variant of the recipe"
    ),
    "ecc_uncorrected": Question("uncorrected memory errors?", f"{_SMI}; amdgpu's RAS counters", "`ecc_errors`"),
    "mig_gpus": Question("how many GPUs are in MIG mode?", f"{_SMI}: mig.mode.current", "`mig_enabled`"),
    "fabric_states": Question(
        "has the NVLink fabric taken the GPUs up?", f"{_SMI}: fabric.state", "`fabric_not_ready`"
    ),
    "recovery_actions": Question(
        "does the driver ask for a reset?", f"{_SMI}: gpu_recovery_action", "`recovery_needed`"
    ),
    "remap_pending": Question(
        "do rows of memory wait for a reset?", "`nvidia-smi --query-remapped-rows`", "`rows_pending`"
    ),
    "remap_failed": Question("is no spare row left?", "`nvidia-smi --query-remapped-rows`", "`rows_failed`"),
    "nvlinks": Question("the fewest active NVLinks of a GPU?", "`nvidia-smi nvlink --status`", "a note of `init`"),
    "gpu_errors": Question(
        "Xids, SXids and failed starts?", "the kernel's log since the boot", "`xid_errors`, `sxid_errors`"
    ),
    "xid": Question("the codes of the Xids?", "as `gpu_errors`", "as `gpu_errors`"),
    "pci_gpus": Question(
        "which GPUs are on the bus?", "`/sys/bus/pci/devices`", "the class of a host without a driver; `no_gpu_on_bus`"
    ),
    "nvswitches": Question(
        "how many NVSwitches?", "`/sys/bus/pci/devices`: class 0680, or SW_MNG", "the fabric manager"
    ),
    "kernel_driver": Question("which driver has the kernel loaded?", "`/sys/module`", "whether a role may install one"),
    "nouveau": Question("does nouveau hold the GPUs?", "`/sys/module/nouveau`", "`nouveau_loaded`"),
    "secure_boot": Question("does the firmware check signatures?", "the EFI variable SecureBoot", "`secure_boot`"),
    "module_key_enrolled": Question("is the key of DKMS enrolled?", "`mokutil --test-key`", "`secure_boot`"),
    "kernel": Question("which kernel runs?", "uname", "`kernel_too_new`"),
    "kernel_headers": Question("are its headers installed?", "`/lib/modules/KERNEL/build`", "a note of `init`"),
    "next_kernel": Question("which kernel boots next?", "`/boot`, `/etc/default/grub`", "`kernel_too_new`"),
    "next_kernel_headers": Question("are its headers installed?", "`/lib/modules/KERNEL/build`", "a note of `init`"),
    "next_kernel_driver": Question("has it a driver?", "`/lib/modules/KERNEL/modules.dep`", "`no_kernel_driver`"),
    "iommu": Question("does the IOMMU translate?", "`/sys/kernel/iommu_groups`", "a note of `init`"),
    "acs_bridges": Question(
        "how many bridges redirect (ACS)?", "the configuration space of bridges", "a note of `init`"
    ),
    "compute_partitions": Question("SPX, or parts of a GPU?", "`/sys/class/drm`", "`gpu_partitioned`"),
    "memory_partitions": Question("NPS1, or parts of its memory?", "`/sys/class/drm`", "`gpu_partitioned`"),
    "container": Question(
        "is the kernel another machine's?", "`/run/systemd/container`", "facts of the kernel are unknown"
    ),
    "cloud_init": Question("is the first boot over?", "`/run/cloud-init`", "a note of `init`"),
    "docker": Question("which container engine is there?", "dpkg or rpm, `/snap/bin/docker`", "a note of `init`"),
    "machine": Question("which processor?", "uname", "`wrong_machine`"),
    "cpu_count": Question("how many cores?", "the scheduler", "`too_few_cores`"),
    "memory_gib": Question("how much memory?", "sysconf", "`too_little_memory`"),
    "glibc": Question("which C library?", "confstr", "`glibc_too_old`"),
    "python": Question("which versions of Python?", "`/usr/bin`", "`no_python`"),
    "os": Question("which distribution?", "`/etc/os-release`", "packages"),
}


def facts_page() -> str:
    """The text of docs/facts.md."""
    lines = [
        "# What the probe asks a host",
        "",
        "The probe asks a host with GPUs these questions. It runs as root, reads files of the kernel before it runs a",
        "tool, changes nothing, and ends in 90 seconds. `null` is an unknown answer: a tool is missing, does not know",
        'the field, or prints "N/A", "ERR!" or other text. Output beyond 4 MiB and tools that hang are cut off. In a',
        "container the facts of the kernel and the PCI bus are unknown.",
        "",
        "| fact | question | read from | decides |",
        "|---|---|---|---|",
        *(
            f"| `{name}` | {question.text} | {question.read_from} | {question.decides} |"
            for name, question in QUESTIONS.items()
        ),
        "",
        "## No driver, and a tool that fails",
        "",
        "| state | what the host shows | what happens on a host with a managed driver |",
        "|---|---|---|",
        "| `no_driver` | the tool is not installed | a role installs the driver |",
        "| `driver_not_loaded` | the tool reaches no driver | a role installs the driver |",
        "| `driver_mismatch` | the loaded driver is not the installed one | a role installs the driver; a restart |",
        "| `tool_failed`, `no_gpus`, `tool_hangs` | a driver is loaded, and its tool is no help | a veto |",
        "| the same | no driver is loaded | a role installs the driver |",
        "| the same, or one of the first three | the PCI bus has no GPU of the vendor | a veto: `no_gpu_on_bus` |",
        "| `gpu_lost` | the driver has lost a GPU | a veto: restart, then a ticket. No driver is installed |",
        "",
        "Xids are read in each of these states but the first. `recipes/gpu_errors.yml` contains NVIDIA's catalogue: an",
        "error whose action is a reset, a reboot or a ticket is a veto until the host has restarted, or until the",
        "driver logs that the GPU needs no action (Xid 154). `vllm-fleet issues` applies the same data to a log file.",
        "",
        "Made from `vllm_fleet/facts/questions.py` by `make golden`.",
        "",
    ]
    return "\n".join(lines)
