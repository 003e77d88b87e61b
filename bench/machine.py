"""The machine on which the figures were measured, without names of hosts or folders."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from lab import shell


def describe(root: Path, pyinfra: Path) -> dict[str, str]:
    """Part of the machine -> its description, in the order to show.

    Args:
        root: the target's root folder.
        pyinfra: the program pyinfra.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = os_name((root / "etc/os-release").read_text(encoding="utf-8"))
    status = (root / "var/lib/dpkg/status").read_text(encoding="utf-8")
    return {
        "processors": f"{processors()}, for the controller and all targets together",
        "memory": f"{memory:.0f} GiB",
        "kernel": f"Linux {platform.release().split('-')[0]}, {platform.machine()}",
        "controller": f"Python {platform.python_version()}, ansible-core {version('ansible-core')}, "
        f"asyncssh {version('asyncssh')}",
        "peers": f"{shell.run(pyinfra, '--version').strip().replace(': v', ' ')}; Ansible's tasks with the same "
        "ansible-core",
        "target": f"{system}, OpenSSH {package_version(status, 'openssh-server')}, "
        f"Python {package_version(status, 'python3')}",
    }


def processors() -> str:
    """The number and the model of the processors."""
    return f"{len(os.sched_getaffinity(0))} ({_processor()})"


def os_name(text: str) -> str:
    """The system's name from the text of ``/etc/os-release``."""
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)', text, re.MULTILINE)
    return match[1] if match else "Linux"


def package_version(status: str, package: str) -> str:
    """The upstream version of an installed package, from the text of dpkg's status file."""
    match = re.search(rf"^Package: {re.escape(package)}\n(?:.+\n)*?Version: (?:\d+:)?([^-\s]+)", status, re.MULTILINE)
    return match[1] if match else "unknown"


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    fields: Mapping[str, str] = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())
    }
    return fields.get("model name") or platform.machine()
