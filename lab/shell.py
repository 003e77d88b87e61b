"""Runs programs of this machine, with one clear error when one is missing or fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vllm_fleet.base.errors import ErrorCode, FleetError

#: Program -> its package in Debian and Ubuntu.
PACKAGES = {
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "nft": "nftables",
    "ssh-keyscan": "openssh-client",
    "systemd-nspawn": "systemd-container",
}
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def failed(message: str, hint: str = "", host: str | None = None) -> FleetError:
    """The error for work that failed (exit code 1)."""
    return FleetError(message, hint, host=host, code=ErrorCode.WORK_FAILED)


def environment() -> dict[str, str]:
    """The environment for the tools: messages in English, system folders on PATH."""
    return {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:{_SBIN}"}


def run(*command: str | Path, text_in: str | None = None, timeout_seconds: float = 300) -> str:
    """Runs a tool and returns its standard output.

    Raises:
        FleetError: it is not installed, failed, or did not end in time.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            input=text_in,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            env=environment(),
        )
    except FileNotFoundError:
        raise _missing([words[0]]) from None
    except subprocess.TimeoutExpired:
        raise failed(f"'{' '.join(words)}' did not end within {timeout_seconds:g} s") from None
    if done.returncode != 0:
        output = (done.stderr or done.stdout).strip().replace("\n", "; ")
        raise failed(f"'{' '.join(words)}' failed: {output or f'exit code {done.returncode}'}")
    return done.stdout


def require(tools: Sequence[str] = tuple(PACKAGES)) -> None:
    """Checks root and the tools before anything is touched.

    Raises:
        FleetError: not root, or a tool is missing; the hint names every package.
    """
    if os.geteuid() != 0:
        raise FleetError(
            "the lab creates hosts, mounts and a bridge, which needs root",
            "run it as root (sudo -E make lab)",
            code=ErrorCode.REFUSED,
        )
    missing = [tool for tool in tools if shutil.which(tool, path=environment()["PATH"]) is None]
    if missing:
        raise _missing(missing)


def _missing(tools: list[str]) -> FleetError:
    packages = " ".join(sorted({PACKAGES.get(tool, tool) for tool in tools}))
    return FleetError(f"not installed: {', '.join(tools)}", f"apt-get install {packages}", code=ErrorCode.REFUSED)
