"""Where the lab keeps its things: one folder a lab, under the cache, so that all of it can be found again.

``<cache>/lab/state/<bridge>/lab.json`` is the lab, ``.../<bridge>/<host>/host.json`` one of its hosts. They
are written before anything is made and removed after everything is gone, so what they name is all there is.
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
    """The bridges of the labs that left a trace, sorted."""
    return sorted(folder.name for folder in state_dir().glob("*") if folder.is_dir())


def hosts(bridge: str) -> list[str]:
    """The hosts of a lab that left a trace, sorted."""
    return sorted(folder.name for folder in lab_dir(bridge).glob("*") if folder.is_dir())


def read(path: Path) -> dict[str, Any]:
    """A state file's mapping; empty where there is none or it was cut short by a crash."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a state file, readable by root only, in one step."""
    write_atomically(path, json.dumps(data, indent=2, sort_keys=True) + "\n", mode=0o600)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds a lock of that name among all users of the cache; freed by the kernel when the process dies.

    The file goes with the lock, so nothing stays behind: whoever waited for a file that is gone takes a new one.
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
    """Unmounts everything below a folder and removes it; nothing below a mount that stays is touched.

    Raises:
        FleetError: something could not be unmounted.
    """
    real = folder.resolve()
    mountinfo = Path("/proc/self/mountinfo")
    for point in mounts_below(real, mountinfo.read_text(encoding="utf-8")):
        # Lazily: a reader somewhere must not keep the lab alive, and the mount is gone from sight at once.
        shell.run("umount", "--lazy", point)
    left = mounts_below(real, mountinfo.read_text(encoding="utf-8"))
    if left:
        raise shell.failed(f"still mounted: {', '.join(left)}", "unmount it by hand and run the command again")
    if real.exists():
        shutil.rmtree(real)
