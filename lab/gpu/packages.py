"""Stand-ins for the vendors' driver packages: names, versions, and tools that report the loaded version.

A real installation builds a kernel module, which a start of the host (or the first use) loads; until then the tools of
another version do not work with it. Here the "module" is a file with a version, and ``/run``, which is empty after a
start, holds the one that is loaded. ``unverified``: that udev starts NVIDIA's persistence daemon without persistence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from lab.apt import Package
from lab.gpu import scripts
from lab.gpu.model import Gpus
from lab.rootfs import File

_MODULE = "usr/lib/lab-gpu/module"
_MARK = "@LOADED@"
_LOADED = """\
#!/bin/sh
# Stands in for a driver's tool on a lab host: says what is loaded, which is what was installed when it was first used.
[ -e /usr/lib/lab-gpu/module ] || { echo 'no driver is installed' >&2; exit 9; }
mkdir -p /run/lab-gpu
[ -e /run/lab-gpu/loaded ] || cp /usr/lib/lab-gpu/module /run/lab-gpu/loaded
loaded=$(cat /run/lab-gpu/loaded)
"""
_NVIDIA = """\
[ "$loaded" = VERSION ] || { echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18; }
"""
#: The kernel module creates the devices, and udev sets their groups. Docker refuses to start a container without them.
#: These are copies of /dev/null: they can be opened, and nothing is behind them.
_AMD = """\
if [ ! -e /dev/kfd ] && mknod -m 660 /dev/kfd c 1 3 2>/dev/null; then
    chgrp render /dev/kfd
    mkdir -p /dev/dri
    for number in NUMBERS; do
        mknod -m 660 "/dev/dri/card$number" c 1 3
        mknod -m 660 "/dev/dri/renderD$((128 + number))" c 1 3
    done
    chgrp video /dev/dri/card*
    chgrp render /dev/dri/renderD*
fi
"""
_RUN = """\
said=$(/usr/lib/lab-gpu/TOOL "$@") || { code=$?; printf '%s\\n' "$said"; exit $code; }
printf '%s\\n' "$said" | sed "s/@LOADED@/$loaded/g"
"""
_SLEEPER = "#!/bin/sh\n# Stands in for a daemon.\nexec sleep infinity\n"


#: What NVIDIA's packages need, by name without version: ``=`` at exactly their own version. Read on 2026-11-28: the
#: exact versions in the error of apt where a newer one of the branch is in the repository (public reports of 580.159.03
#: beside 580.178.04), in packages.ubuntu.com for libnvidia-compute-580 and nvidia-dkms-580-open, in packages.debian.org
#: for libcuda1, and for nvidia-persistenced in a public error of branch 610. ``unverified``: that branch 580 asks for
#: the exact version everywhere. Left out: dkms, the C library, and what a desktop needs.
_NVIDIA_NEEDS: Mapping[str, tuple[str, ...]] = {
    "libnvidia-compute-580": ("libnvidia-gpucomp-580", "nvidia-persistenced"),
    "libnvidia-decode-580": ("libnvidia-compute-580",),
    "nvidia-compute-utils-580": ("libnvidia-compute-580", "nvidia-modprobe"),
    "nvidia-dkms-580-open": ("nvidia-kernel-common-580", "nvidia-kernel-source-580-open"),
    "nvidia-kernel-common-580": ("nvidia-firmware-580",),
    "nvidia-utils-580": ("libnvidia-compute-580",),
    "libcuda1": ("libnvidia-ptxjitcompiler1", "libnvidia-gpucomp"),
    "libnvidia-ptxjitcompiler1": (),
    "libnvidia-gpucomp": (),
    "nvidia-driver-cuda": ("libcuda1", "libnvidia-ml1", "nvidia-smi", "nvidia-persistenced", "nvidia-modprobe"),
    "nvidia-kernel-open-dkms": ("nvidia-kernel-support", "firmware-nvidia-gsp"),
    "nvidia-smi": ("libnvidia-ml1",),
}
#: Virtual names, by NVIDIA/gpu-driver-container, pull request 451: apt takes no version of such a name.
_NVIDIA_PROVIDES = {
    "nvidia-fabricmanager": ("nvidia-fabricmanager-580", "nvidia-fabricmanager-branch"),
    "nvidia-imex": ("nvidia-imex-580",),
}


def nvidia(host: Gpus, version: str, packages: Mapping[str, str]) -> Iterator[Package]:
    """NVIDIA's packages of one driver version, with what they need.

    Args:
        host: the output of the tools apart from the version.
        version: the version of the driver.
        packages: name -> pattern of the Debian version, as in the recipe.
    """
    files = _nvidia_files(host, version)
    needed = {name for package in packages for name in _NVIDIA_NEEDS.get(package, ())}
    patterns = {**dict.fromkeys(needed, f"{version}-1*"), **packages}
    for name, pattern in patterns.items():
        own = "1" if pattern == "*" else pattern.replace("*", "ubuntu1")
        relations = {
            "Depends": ", ".join(f"{needs} (= {own})" for needs in _NVIDIA_NEEDS.get(name, ())),
            "Provides": ", ".join(f"{virtual} (= {own})" for virtual in _NVIDIA_PROVIDES.get(name, ())),
        }
        kind = next((known for known in files if name == known or name.startswith(f"{known}-")), "")
        yield Package(name, own, files.get(kind, {}), {key: value for key, value in relations.items() if value})


def _nvidia_files(host: Gpus, version: str) -> dict[str, dict[str, File]]:
    """The files of NVIDIA's packages: name without the branch -> path -> file."""
    unit = "[Unit]\nDescription=stand-in\n[Service]\nExecStart={}\n[Install]\nWantedBy=multi-user.target\n"
    tools = {
        "usr/bin/nvidia-smi": File(_LOADED + _NVIDIA.replace("VERSION", version) + _tool("nvidia-smi"), 0o755),
        "usr/lib/lab-gpu/nvidia-smi": File(scripts.nvidia_smi(replace(host, driver=_MARK)), 0o755),
        # A container sees the kernel log of its machine, which has other GPUs.
        "usr/local/bin/dmesg": File(scripts.dmesg(replace(host, driver=version)), 0o755),
    }
    module = {_MODULE: File(f"{version}\n")}
    return {
        "nvidia-dkms": module,
        "nvidia-kernel-open-dkms": module,
        "nvidia-utils": tools,
        "nvidia-smi": tools,
        "nvidia-modprobe": {"usr/bin/nvidia-modprobe": File(_LOADED + scripts.NVIDIA_MODPROBE, 0o755)},
        "nvidia-persistenced": {
            "usr/bin/nvidia-persistenced": File(_SLEEPER, 0o755),
            # Without [Install]: udev starts it.
            "lib/systemd/system/nvidia-persistenced.service": File(
                unit.format("/usr/bin/nvidia-persistenced --no-persistence-mode").split("[Install]")[0]
            ),
        },
        "nvidia-fabricmanager": {
            "usr/bin/nv-fabricmanager": File(
                scripts.fabric_manager(replace(host, fabric_manager=version)).replace("exit 1", "exec sleep infinity"),
                0o755,
            ),
            "lib/systemd/system/nvidia-fabricmanager.service": File(unit.format("/usr/bin/nv-fabricmanager -c x")),
        },
    }


def amd(host: Gpus, version: str, rocm: str, packages: Mapping[str, str]) -> Iterator[Package]:
    """AMD's packages of one driver version with one ROCm; the arguments are those of :func:`nvidia`."""
    unloaded = replace(host, driver=_MARK)
    loaded = _LOADED + _AMD.replace("NUMBERS", " ".join(str(number) for number in range(host.count)))
    files: dict[str, dict[str, File]] = {
        "amdgpu-dkms": {_MODULE: File(f"{version}\n")},
        "rocm-core": {"opt/rocm/.info/version": File(f"{rocm}-56\n")},
        "rocm-smi-lib": {
            "opt/rocm/bin/rocm-smi": File(loaded + _tool("rocm-smi"), 0o755),
            "usr/lib/lab-gpu/rocm-smi": File(scripts.rocm_smi(unloaded), 0o755),
        },
        "amd-smi-lib": {
            "opt/rocm/bin/amd-smi": File(loaded + _tool("amd-smi"), 0o755),
            "usr/lib/lab-gpu/amd-smi": File(scripts.amd_smi(unloaded), 0o755),
        },
    }
    for name, pattern in packages.items():
        before, star, after = pattern.partition("*")
        yield Package(name, (before or "1") + ("0" if star else "") + after.replace("*", "56"), files.get(name, {}))


def _tool(name: str) -> str:
    return _RUN.replace("TOOL", name)
