"""The file tree that all lab hosts share: Debian by debootstrap, created once, verified by the archive's keys."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

from lab import shell, state
from lab.surroundings import KEYRING, SUITE, read_site
from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.heartbeat import Heartbeat

#: The packages of a plain cloud image that the roles expect; vLLM on a CPU needs libnuma1.
PACKAGES = (
    "ca-certificates",
    "dbus",
    "debian-archive-keyring",
    "iproute2",
    "libnuma1",
    "nftables",
    "openssh-server",
    "procps",
    "python3",
    "python3-venv",
    "sudo",
    "systemd",
    "systemd-sysv",
    "systemd-timesyncd",
)
#: A change of the steps after debootstrap needs a new number, and so a new tree.
_STEPS = 1
_TIMEOUT_SECONDS = 1800
_NEEDED_GIB = 1


def tree_digest(packages: tuple[str, ...] = PACKAGES, suite: str = SUITE) -> str:
    """The name of the tree of these packages: hosts are replaced when it changes."""
    identity = json.dumps([suite, sorted(packages), _STEPS])
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


def tree_path(digest: str) -> Path:
    """The folder of the tree of that name."""
    return paths.cache_dir() / "lab" / f"tree-{digest}"


def ensure_tree() -> Path:
    """Creates the tree unless it exists; starts again after an interruption.

    Raises:
        FleetError: not root, a tool is missing, the disk is too small, or debootstrap failed.
    """
    path = tree_path(tree_digest())
    if path.is_dir():
        return path
    shell.require()
    if not Path(KEYRING).is_file():
        raise FleetError(
            "the keys of Debian's archive are missing",
            "apt-get install debian-archive-keyring",
            KEYRING,
            code="refused",
        )
    with state.locked("tree"):
        if not path.is_dir():
            _make(path)
    return path


def _make(path: Path) -> None:
    part = path.with_name(f"{path.name}.part")
    state.remove_tree(part)
    require_disk(path.parent, _NEEDED_GIB)
    main, _security = read_site().mirrors
    log = path.with_name(f"{path.name}.log")
    command = [
        "debootstrap",
        f"--include={','.join(PACKAGES)}",
        f"--keyring={KEYRING}",
        "--force-check-gpg",
        SUITE,
        str(part),
        main,
    ]
    with Heartbeat("lab: the hosts' Debian (debootstrap, once)") as beat, log.open("w") as stream:
        _debootstrap(command, stream.fileno(), log, beat)
    _tidy(part)
    part.rename(path)
    log.unlink()


def _debootstrap(command: list[str], output: int, log: Path, beat: Heartbeat) -> None:
    """Runs debootstrap, with its last line as the note of the heartbeat."""
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=shell.environment())
    try:
        for _ in range(_TIMEOUT_SECONDS):
            try:
                code = process.wait(timeout=1)
                break
            except subprocess.TimeoutExpired:
                beat.note = _last_lines(log, 1).removeprefix("I: ")
        else:
            raise shell.failed(f"debootstrap did not end within {_TIMEOUT_SECONDS} s", f"see {log}")
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code != 0:
        raise shell.failed(f"debootstrap failed: {_last_lines(log, 3)}", f"see {log}")


def _last_lines(path: Path, count: int) -> str:
    return "; ".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


def _tidy(root: Path) -> None:
    """Removes files that must differ between hosts, and files that no host needs."""
    for pattern in ("etc/ssh/ssh_host_*", "var/cache/apt/archives/*.deb", "var/log/*.log", "etc/hostname"):
        for file in root.glob(pattern):
            file.unlink()
    (root / "etc/machine-id").write_text("", encoding="utf-8")


def require_disk(folder: Path, needed_gib: int) -> None:
    """Checks the free space of the file system of a folder, which may not exist yet.

    Raises:
        FleetError: there is too little.
    """
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    disk = os.statvfs(there)
    free_gib = disk.f_bavail * disk.f_frsize / 2**30
    if free_gib < needed_gib:
        raise FleetError(
            f"the lab needs {needed_gib} GiB at {folder}, and {free_gib:.1f} GiB are free",
            "free some space, or set VLLM_FLEET_CACHE to a folder on a larger disk",
            code="refused",
        )
