"""Directories on the controller: the project's root, its inventories and its cache."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vllm_fleet.base.errors import FleetError, UnusableFileError

#: What to do where permissions are missing.
ALLOW = "correct its permissions, or run as a user who has them"


@cache
def root() -> Path:
    """The checkout: the nearest directory above this file that contains ``Pulumi.yaml``."""
    for folder in Path(__file__).resolve().parents:
        if (folder / "Pulumi.yaml").is_file():
            return folder
    raise FileNotFoundError("no Pulumi.yaml above vllm_fleet/: install the project from its checkout")


def cache_dir() -> Path:
    """The cache outside the checkout: ``$VLLM_FLEET_CACHE``, else the XDG cache folder.

    Raises:
        FleetError: no variable says where it is, and this user has no home.
    """
    if explicit := os.environ.get("VLLM_FLEET_CACHE"):
        return Path(explicit)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "vllm-fleet"
    home = home_dir()
    if home is None:
        raise UnusableFileError(
            "this user has no home, so there is no place for the cache", "set HOME or VLLM_FLEET_CACHE"
        )
    return home / ".cache" / "vllm-fleet"


def home_dir() -> Path | None:
    """The home of this user; None: in a container a user may have neither ``HOME`` nor an entry in passwd."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def inventories_dir() -> Path:
    """The directory of the fleets: ``$VLLM_FLEET_INVENTORIES``, else ``inventories/`` in the checkout."""
    explicit = os.environ.get("VLLM_FLEET_INVENTORIES")
    return Path(explicit) if explicit else root() / "inventories"


def run_dir(fleet: str) -> Path:
    """The directory for state between runs on a fleet; it can be deleted at any time."""
    return root() / ".fleet" / fleet


def absolute(path: Path) -> Path:
    """The path from the root, without links and ``..``.

    ``Path.resolve`` says the same, and raises ``RuntimeError`` where a link leads to itself; here such a link stays.

    Raises:
        FleetError: the path is relative to a working directory that was deleted.
    """
    try:
        return Path(os.path.realpath(path))
    except FileNotFoundError:
        raise FleetError("the working directory was deleted", "change to another one") from None


def display(path: Path) -> str:
    """The path as a user types it: relative to the working directory if it is inside."""
    try:
        return str(absolute(path).relative_to(Path.cwd()))
    except (ValueError, OSError, FleetError):  # the working directory may be deleted
        return str(path)


@dataclass(frozen=True)
class PathFault:
    """Why a file that the input names cannot be used.

    Attributes:
        message: what is wrong, with the path.
        hint: what to do about it.
        is_missing: whether nothing is there. A secret may be on another machine; a folder in its place is wrong here.
    """

    message: str
    hint: str
    is_missing: bool = False


def file_fault(path: Path, what: str = "") -> PathFault | None:
    """Why a path is no file that this user can read; None: it is one. Nothing of the file is read.

    Args:
        path: the path; ``Path.is_file`` would raise an error for one that is too long or below a closed folder.
        what: what the file is, where the path alone does not say it.
    """
    fault = path_fault(path, what)
    if fault is None and not stat.S_ISREG(path.stat().st_mode):
        kind = "a folder" if path.is_dir() else "a device, a pipe or a socket"
        return PathFault(f"{_shown(path, what)} is {kind}, not a file", "name a file")
    return fault


def path_fault(path: Path, what: str = "") -> PathFault | None:
    """Why there is no file or folder that this user can read; None: there is one.

    Args:
        path: the path; ``Path.exists`` would raise an error for one that is too long or below a closed folder.
        what: what it is, where the path alone does not say it.
    """
    shown = _shown(path, what)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            return PathFault(f"{shown} is a link to a file that does not exist", "correct the link", is_missing=True)
        return PathFault(f"there is no {shown}", "correct the path", is_missing=True)
    except OSError as fault:
        return PathFault(f"{shown} cannot be read: {fault.strerror}", _hint(fault))
    except ValueError:  # a NUL
        return PathFault("is not a path", "correct it")
    if not os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK):
        return PathFault(f"{shown} cannot be read: Permission denied", _hint(PermissionError()))
    return None


def unlisted_folders(folder: Path) -> list[FleetError]:
    """The error of each folder, of this one and those below it, that this user cannot list."""
    faults: list[OSError] = []
    for _ in os.walk(folder, onerror=faults.append):
        pass
    return [
        FleetError(f"cannot be listed: {fault.strerror}", _hint(fault), display(Path(str(fault.filename))))
        for fault in faults
    ]


def new_file_fault(path: Path) -> PathFault | None:
    """Why this user cannot write a new file or folder at a path; None: it can be done. Its parents may be missing.

    Args:
        path: where it will be.
    """
    try:
        path.lstat()
        return PathFault(f"{display(path)} exists already", "name a new file")
    except (FileNotFoundError, NotADirectoryError):
        pass  # what is above it decides
    except OSError as fault:
        return PathFault(f"{display(path)} cannot be written: {fault.strerror}", _hint(fault))
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    return folder_fault(above)


def folder_fault(folder: Path) -> PathFault | None:
    """Why this user cannot write into a folder that is there; None: it can be done.

    Args:
        folder: the folder.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises where it may not look
        return PathFault(f"{display(folder)} is not a folder", "correct the path")
    if not os.access(folder, os.W_OK | os.X_OK):
        return PathFault(f"{display(folder)} cannot be written: Permission denied", _hint(PermissionError()))
    return None


def _shown(path: Path, what: str) -> str:
    return f"{what} {display(path)}" if what else display(path)


def _hint(fault: OSError) -> str:
    denied = isinstance(fault, PermissionError)
    return ALLOW if denied else "correct the path"
