#!/usr/bin/python
"""Reads what an engine's wheels depend on, and compares it with what a lock requires."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: engine_host_info
short_description: Compare a host with what the lock of an engine requires
description:
  - Reads the machine, the Pythons, glibc, ROCm and the kinds of GPU of the host, and chooses the Python.
  - >-
    A module of its own because it must run before anything is installed, and because Ansible's own facts have neither
    glibc nor ROCm and cost seconds.
  - Changes nothing; supports check mode.
options:
  machine:
    description: The processors that the lock is for.
    type: str
    required: true
  python_versions:
    description: The Pythons that the lock is for.
    type: list
    elements: str
    required: true
  glibc_min:
    description: The oldest glibc that the wheels of the lock run on.
    type: str
    required: true
  rocm_min:
    description: The oldest ROCm; empty if none is needed.
    type: str
    default: ""
author: [vllm-fleet]
"""
EXAMPLES = r"""
- engine_host_info:
    machine: x86_64
    python_versions: ["3.11", "3.12"]
    glibc_min: "2.35"
  register: __vllm_engine_host
"""
RETURN = r"""
fits:
  description: Whether the host has everything that the lock requires.
  type: bool
  returned: success
python:
  description: The Python to use, the distribution's own if the lock is for it; empty for none.
  type: str
  returned: success
devices:
  description: The kinds of GPU that the kernel shows, C(cuda) or C(rocm).
  type: list
  returned: success
required:
  description: What the lock requires, as a phrase.
  type: str
  returned: success
found:
  description: What the host has, as a phrase.
  type: str
  returned: success
"""
DEVICES = (("cuda", "nvidiactl"), ("rocm", "kfd"))


def python_versions() -> list[str]:
    """The Pythons in /usr/bin, the distribution's own first: packages that compile against Python are made for it."""
    names = "\n".join([*glob.glob("/usr/bin/python3.*"), ""])
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return sorted(re.findall(r"/usr/bin/python(3\.\d+)\n", names), key=lambda version: version != own)


def glibc_version() -> str:
    """The version of glibc; empty if the host has another library."""
    return "".join((os.confstr("CS_GNU_LIBC_VERSION") or "glibc").split()[1:2])


def rocm_version() -> str:
    """The version of ROCm; empty if it is not installed."""
    try:
        with open(os.path.join(os.environ.get("ROCM_PATH", "/opt/rocm"), ".info", "version"), encoding="utf-8") as file:
            return file.read().strip().split("-")[0]
    except OSError:
        return ""


def is_at_least(version: str, minimum: str) -> bool:
    """Whether a dotted version is a minimum or newer; an empty one is older than any."""
    numbers = [[int(part) for part in re.findall(r"\d+", text)] for text in (version, minimum)]
    return numbers[0] >= numbers[1]


def compare(required: Mapping[str, Any], machine: str, pythons: Sequence[str], glibc: str, rocm: str) -> dict[str, Any]:
    """The answer of the module, without devices.

    Args:
        required: the options of the module.
        machine: the kind of the host's processors.
        pythons: the versions of Python on the host, in the order of preference.
        glibc: the version of glibc.
        rocm: the version of ROCm; empty for none.
    """
    usable = [version for version in pythons if version in required["python_versions"]]
    minimum = required["rocm_min"]
    return {
        "fits": bool(usable)
        and machine == required["machine"]
        and is_at_least(glibc, required["glibc_min"])
        and (not minimum or is_at_least(rocm, minimum)),
        "python": usable[0] if usable else "",
        "required": f"{required['machine']}, Python {' or '.join(required['python_versions'])}, "
        f"glibc {required['glibc_min']} or newer" + (f", ROCm {minimum} or newer" if minimum else ""),
        "found": f"{machine} with Python {', '.join(pythons) or 'none'}, glibc {glibc or 'none'}, "
        f"ROCm {rocm or 'none'}",
    }


def main() -> None:
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={
            "machine": {"type": "str", "required": True},
            "python_versions": {"type": "list", "elements": "str", "required": True},
            "glibc_min": {"type": "str", "required": True},
            "rocm_min": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    answer = compare(module.params, os.uname().machine, python_versions(), glibc_version(), rocm_version())
    devices = [name for name, node in DEVICES if os.path.exists(f"/dev/{node}")]
    module.exit_json(changed=False, devices=devices, **answer)


if __name__ == "__main__":
    main()
