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


def nvidia(host: Gpus, version: str, packages: Mapping[str, str]) -> Iterator[Package]:
    """NVIDIA's packages of one driver version.

    Args:
        host: the output of the tools apart from the version.
        version: the version of the driver.
        packages: name -> pattern of the Debian version, as in the recipe.
    """
    tool = File(scripts.nvidia_smi(replace(host, driver=_MARK)), 0o755)
    unit = "[Unit]\nDescription=stand-in\n[Service]\nExecStart={}\n[Install]\nWantedBy=multi-user.target\n"
    files: dict[str, dict[str, File]] = {
        "nvidia-dkms": {_MODULE: File(f"{version}\n")},
        "nvidia-utils": {
            "usr/bin/nvidia-smi": File(_LOADED + _NVIDIA.replace("VERSION", version) + _tool("nvidia-smi"), 0o755),
            "usr/lib/lab-gpu/nvidia-smi": tool,
            # A container sees the kernel log of its machine, which has other GPUs.
            "usr/local/bin/dmesg": File(scripts.dmesg(replace(host, driver=version)), 0o755),
        },
        "nvidia-compute-utils": {
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
    for name, pattern in packages.items():
        kind = next((known for known in files if name.startswith(f"{known}-")), "")
        yield Package(name, pattern.replace("*", "1ubuntu1"), files.get(kind, {}))


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
