"""The states of drift and the codes of vetoes: what programs decide by. The texts beside them are for people.

The programs of ``on_host`` emit these values as plain text, since StrEnum needs a newer Python than hosts have; a test
compares the two.
"""

from __future__ import annotations

from vllm_fleet.base.documented_enum import DocumentedEnum


class DriftState(DocumentedEnum):
    """How an item of a manifest differs from what is on the host."""

    MISSING = "missing", "the path does not exist"
    UNWANTED = "unwanted", "the path exists, and the plan does not have it any more"
    WRONG_TYPE = "wrong_type", "the path is not of the item's type: file, directory or link"
    WRONG_CONTENT = "wrong_content", "the content has another digest"
    WRONG_MODE = "wrong_mode", "the permissions differ"
    WRONG_OWNER = "wrong_owner", "another user owns it"
    WRONG_GROUP = "wrong_group", "another group owns it"
    WRONG_TARGET = "wrong_target", "the link points elsewhere"
    DANGLING = "dangling", "the link points to nothing"
    INCOMPLETE = "incomplete", "the store has no stamp, so its files were never all verified"
    UNVERIFIED = "unverified", "the stamp of the store names another digest for a file"
    FILE_MISSING = "file_missing", "a file of the store is missing"
    FILE_CHANGED = "file_changed", "a file of the store has changed since it was verified"
    WRONG_HOME = "wrong_home", "the account has another home directory"
    WRONG_SHELL = "wrong_shell", "the account has another shell"
    NOT_IN_GROUP = "not_in_group", "the account is not a member of a group"
    WRONG_VALUE = "wrong_value", "the kernel parameter has another value"
    UNKNOWN_UNIT = "unknown_unit", "systemd does not know the unit"
    NOT_RELOADED = "not_reloaded", "the unit has changed on disk since systemd read it"
    FOREIGN_UNIT_FILE = (
        "foreign_unit_file",
        "a unit file or drop-in in /etc or /run that the plan does not have changes the unit",
    )
    NOT_LOADED = "not_loaded", "the kernel has no such table of nftables"
    OTHER_RULES = "other_rules", "the table of nftables is not what its file makes"
    INACTIVE = "inactive", "the unit does not run"
    FAILED = "failed", "the unit has failed"
    IN_TRANSITION = "in_transition", "the unit is starting, stopping or reloading"
    ACTIVE = "active", "the unit runs and must not"
    NOT_ENABLED = "not_enabled", "the unit does not start with the host, or does and must not"
    NOT_INSTALLED = "not_installed", "the package is not installed"
    WRONG_VERSION = "wrong_version", "the package is installed at another version"
    NOT_HELD = "not_held", "a package is not on hold"
    DRAINED = "drained", "HAProxy gives no traffic to a server"
    OTHER_KEYS = "other_keys", "HAProxy has not loaded the API keys of their file"
    NO_TOOL = "no_tool", "the tool that the probe calls is not installed"
    NO_ANSWER = "no_answer", "the service that the probe queries does not answer"
    WRONG_TAG = "wrong_tag", "the tag names another image"
    RENEWAL_DUE = "renewal_due", "the certificate ends soon, or has ended: replace gateway.tls.certificate_file"
    NOT_RENEWED = "not_renewed", "the certificate ends soon, or has ended, and the gateway has not renewed it at the CA"
    SELF_SIGNED = "self_signed", "the gateway has signed the certificate itself: the CA has not signed one yet"
    WRONG_NAMES = "wrong_names", "the certificate lacks a name of the plan"
    UNREADABLE = "unreadable", "the probe may not read it"


#: A serving unit in one of these states does not serve. In another state it may serve.
NOT_RUNNING = frozenset({DriftState.INACTIVE, DriftState.FAILED, DriftState.UNKNOWN_UNIT})


#: No role repairs an item in one of these states, a file of the user does: 'drift' reports it, and a run goes on.
FOR_THE_USER = frozenset({DriftState.RENEWAL_DUE})


class VetoCode(DocumentedEnum):
    """Why a host is not what its class says, or which things of others are in the way.

    Where a role installs the driver, faults of the driver are drift.
    """

    TOO_FEW_CORES = "too_few_cores", "the host has fewer CPU cores than its class needs"
    NO_CPU_FLAG = "no_cpu_flag", "the processor of the host cannot do what its class needs"
    TOO_LITTLE_MEMORY = "too_little_memory", "the host has less memory than its class needs"
    WRONG_MACHINE = "wrong_machine", "the processor has another architecture"
    WRONG_SYSTEM = "wrong_system", "the roles do not support the operating system"
    PORT_TAKEN = "port_taken", "another program listens on a port that the plan wants"
    OTHER_FLEET = "other_fleet", "another fleet has set the host up"
    FOREIGN_ACCOUNT = "foreign_account", "the account or the group vllm exists and vllm-fleet did not make it"
    FOREIGN_FILE = "foreign_file", "a file that a role would write exists and vllm-fleet did not make it"
    FOREIGN_FOLDER = "foreign_folder", "a folder of vllm-fleet contains files of others"
    FOREIGN_SERVICE = "foreign_service", "a service that a role would configure has other users"
    WOULD_REMOVE = "would_remove", "apt would remove packages to install those that a role needs"
    UNUSABLE_DOCKER = "unusable_docker", "the docker of the host cannot run the containers"
    SETTINGS_DIFFER = "settings_differ", "daemon.json has another value of a setting that the containers need"
    NO_DRIVER = "no_driver", "the tools that come with the driver are not installed"
    DRIVER_NOT_LOADED = "driver_not_loaded", "the tool runs and reaches no driver in the kernel"
    DRIVER_MISMATCH = "driver_mismatch", "the loaded driver is not the installed one"
    TOOL_FAILED = "tool_failed", "the vendor's tool has failed"
    TOOL_HANGS = "tool_hangs", "the vendor's tool does not end"
    GPU_LOST = "gpu_lost", "the driver has lost a GPU"
    NO_GPUS = "no_gpus", "the vendor's tool works and lists no GPU"
    NO_GPU_ON_BUS = "no_gpu_on_bus", "the PCI bus has no GPU of the vendor, so no driver would find one"
    WRONG_VENDOR = "wrong_vendor", "the GPUs are of another vendor"
    TOO_FEW_GPUS = "too_few_gpus", "the host has fewer GPUs than its class"
    TOO_MANY_GPUS = "too_many_gpus", "the host has more GPUs than its class"
    WRONG_GPU_NAME = "wrong_gpu_name", "a GPU has another name"
    WRONG_GPU_ARCH = "wrong_gpu_arch", "a GPU has another architecture"
    GPU_MEMORY_UNKNOWN = "gpu_memory_unknown", "the vendor's tool does not report the memory of a GPU"
    TOO_LITTLE_GPU_MEMORY = "too_little_gpu_memory", "a GPU has less memory than its class needs"
    WRONG_DRIVER = "wrong_driver", "the loaded driver is not the planned version"
    WRONG_ROCM = "wrong_rocm", "ROCm is not the planned version"
    NO_FABRIC_MANAGER = "no_fabric_manager", "the fabric manager is not installed"
    WRONG_FABRIC_MANAGER = "wrong_fabric_manager", "the fabric manager is not of the driver's version"
    FABRIC_NOT_READY = "fabric_not_ready", "the NVLink network has not taken the GPUs up"
    DRIVER_UNKNOWN = "driver_unknown", "the version of the driver is unknown"
    DRIVER_TOO_OLD = "driver_too_old", "the driver is older than the class or the engine needs"
    DRIVER_TOO_NEW = "driver_too_new", "the driver is newer than the recipes cover"
    CUDA_UNKNOWN = "cuda_unknown", "the CUDA version that the driver supports is unknown"
    CUDA_TOO_OLD = "cuda_too_old", "the driver supports only an older CUDA"
    NO_ROCM = "no_rocm", "ROCm is not installed"
    ROCM_TOO_OLD = "rocm_too_old", "ROCm is older than the class or the engine needs"
    GLIBC_TOO_OLD = "glibc_too_old", "the C library is older than the engine needs"
    NO_PYTHON = "no_python", "the host has no Python that the engine runs on"
    ECC_ERRORS = "ecc_errors", "a GPU counts uncorrected memory errors"
    XID_ERRORS = "xid_errors", "the kernel has logged an error of the hardware"
    SXID_ERRORS = "sxid_errors", "the kernel has logged an error of an NVSwitch"
    ADAPTER_FAILED = "adapter_failed", "the driver cannot start a GPU"
    RECOVERY_NEEDED = "recovery_needed", "the driver asks for a reset or a reboot"
    ROWS_PENDING = "rows_pending", "rows of a GPU's memory wait for a reset to be remapped"
    ROWS_FAILED = "rows_failed", "a GPU has no spare row left to remap its memory"
    MIG_ENABLED = "mig_enabled", "a GPU is in MIG mode"
    GPU_PARTITIONED = "gpu_partitioned", "a GPU is partitioned"
    NOUVEAU_LOADED = "nouveau_loaded", "the kernel's own driver holds the GPUs"
    SECURE_BOOT = "secure_boot", "the firmware refuses the module that DKMS builds"
    KERNEL_TOO_NEW = "kernel_too_new", "the driver does not build for the kernel"
    NO_KERNEL_DRIVER = "no_kernel_driver", "the kernel that boots next has no driver"


#: Things of others that are in the way; the text says what to do about them.
NEIGHBOURS = frozenset(
    {
        *(VetoCode.PORT_TAKEN, VetoCode.FOREIGN_ACCOUNT, VetoCode.FOREIGN_FILE, VetoCode.FOREIGN_FOLDER),
        VetoCode.OTHER_FLEET,
        *(VetoCode.FOREIGN_SERVICE, VetoCode.WOULD_REMOVE, VetoCode.UNUSABLE_DOCKER, VetoCode.SETTINGS_DIFFER),
    }
)
