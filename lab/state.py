"""The state files of labs: one folder for each lab, under the cache.

``<cache>/lab/state/<bridge>/lab.json`` is a lab, ``.../<bridge>/<host>/host.json`` one of its hosts. They are written
before anything is created and removed after everything else, so they name everything that exists.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lab import shell
from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically


def state_dir() -> Path:
    """The folder of all labs of this cache."""
    return paths.cache_dir() / "lab" / "state"


def lab_dir(bridge: str) -> Path:
    """The folder of one lab."""
    return state_dir() / bridge


def host_dir(bridge: str, host: str) -> Path:
    """The folder of one host."""
    return lab_dir(bridge) / host


def labs() -> list[str]:
    """The bridges of the labs with state, sorted."""
    return sorted(folder.name for folder in state_dir().glob("*") if folder.is_dir())


def hosts(bridge: str) -> list[str]:
    """The hosts of a lab with state, sorted."""
    return sorted(folder.name for folder in lab_dir(bridge).glob("*") if folder.is_dir())


def read(path: Path) -> dict[str, Any]:
    """The mapping of a state file; empty where the file is missing or damaged by a crash."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {}
    return data if isinstance(data, dict) else {}


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a state file atomically, readable by root only."""
    write_atomically(path, json.dumps(data, indent=2, sort_keys=True) + "\n", mode=0o600)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds a named lock among all users of the cache; the kernel releases it when the process ends.

    The file is removed with the lock; a process that waited for a removed file opens a new one.
    """
    path = state_dir().parent / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            try:
                if path.stat().st_ino != os.fstat(stream.fileno()).st_ino:
                    continue
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                path.unlink()
            return


def mounts_below(folder: Path, mountinfo: str) -> list[str]:
    """The mount points at or below a folder, in the order in which they must be unmounted.

    Args:
        folder: an absolute path without symbolic links.
        mountinfo: the text of ``/proc/self/mountinfo``, whose fifth field is the mount point with
            blanks written as octal escapes.
    """
    points = [
        re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4])
        for line in mountinfo.splitlines()
        if line.strip()
    ]
    inside = [point for point in points if point == str(folder) or point.startswith(f"{folder}/")]
    return list(reversed(inside))


def remove_tree(folder: Path) -> None:
    """Unmounts everything below a folder and removes it; touches nothing below a mount that cannot be unmounted.

    Raises:
        FleetError: something could not be unmounted.
    """
    real = folder.resolve()
    mountinfo = Path("/proc/self/mountinfo")
    for point in mounts_below(real, mountinfo.read_text(encoding="utf-8")):
        # Lazily: an open file must not block the removal, and the mount disappears at once.
        shell.run("umount", "--lazy", point)
    left = mounts_below(real, mountinfo.read_text(encoding="utf-8"))
    if left:
        raise shell.failed(f"still mounted: {', '.join(left)}", "unmount it by hand and run the command again")
    if real.exists():
        shutil.rmtree(real)
