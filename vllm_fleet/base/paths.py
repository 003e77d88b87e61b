"""Directories on the controller: the project's root, its inventories and its cache."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vllm_fleet.base.errors import FleetError, UnusableFileError

#: What to do where permissions are missing.
ALLOW = "correct its permissions, or run as a user who has them"


@cache
def root() -> Path:
    """The checkout: the nearest directory above this file that contains ``Pulumi.yaml``."""
    if found := _nearest_project(Path(__file__).resolve().parents):
        return found
    raise FileNotFoundError("no Pulumi.yaml above vllm_fleet/: install the project from its checkout")


def other_checkout() -> Path | None:
    """The checkout that the working directory is in, where that is another one than :func:`root`."""
    try:
        here = Path.cwd()
    except OSError:
        return None  # it was deleted
    found = _nearest_project((here, *here.parents))
    is_ours = found and (found / "vllm_fleet" / "__init__.py").is_file()
    return found if found and is_ours and found.resolve() != root() else None


def _nearest_project(folders: Iterable[Path]) -> Path | None:
    return next((folder for folder in folders if (folder / "Pulumi.yaml").is_file()), None)


def cache_dir() -> Path:
    """The cache outside the checkout: ``$VLLM_FLEET_CACHE``, else the XDG cache folder.

    Raises:
        FleetError: the variable names no folder; or no variable says where it is, and this user has no home.
    """
    if explicit := os.environ.get("VLLM_FLEET_CACHE"):
        # What is in it may be read by a user who may not write to it.
        if fault := folder_fault(Path(explicit), writes=False):
            raise fault.error_of("VLLM_FLEET_CACHE", Path(explicit), "correct the variable")
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


def expand_user(path: Path | str) -> Path:
    """The path with ``~`` and ``~user`` replaced; unchanged where no such home is known."""
    # Path.expanduser raises a RuntimeError then.
    return Path(os.path.expanduser(path))  # noqa: PTH111


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
        path: the file, or the folder above it that is wrong.
        reason: what is wrong, after the path.
        hint: what to do about it.
        is_missing: whether nothing is there. A secret may be on another machine; a folder in its place is wrong here.
    """

    path: Path
    reason: str
    hint: str
    is_missing: bool = False

    @property
    def message(self) -> str:
        """What is wrong, with the path."""
        return f"{display(self.path)} {self.reason}"

    def error(self, hint: str = "", key: str | None = None) -> FleetError:
        """The error of this file.

        Args:
            hint: what to do where it is missing; empty: what the fault itself says.
            key: the option that names it.
        """
        kind = FleetError if self.is_missing else UnusableFileError
        return kind(self.reason, (hint if self.is_missing else "") or self.hint, display(self.path), key=key)

    def error_of(self, name: str, given: Path, hint: str = "") -> FleetError:
        """The error of an option or a variable.

        Args:
            name: the option or variable.
            given: its value, which this path may be above.
            hint: what to do; empty: what the fault itself says.
        """
        return UnusableFileError(f"{name} {given}: {self.message}", hint or self.hint)


def file_fault(path: Path, *, takes_pipe: bool = False) -> PathFault | None:
    """Why a path is no file that this user can read; None: it is one. Nothing of the file is read.

    Args:
        path: the path; ``Path.is_file`` would raise an error for one that is too long or below a closed folder.
        takes_pipe: whether a pipe is as good as a file.
    """
    return path_fault(path) or kind_fault(path, path.stat().st_mode, takes_pipe=takes_pipe)


def kind_fault(path: Path, mode: int, *, takes_pipe: bool = False) -> PathFault | None:
    """Why what is at a path is no file; None: it is one.

    Args:
        path: the path.
        mode: its kind and permissions, as ``stat`` has them.
        takes_pipe: whether a pipe is as good as a file.
    """
    if stat.S_ISREG(mode) or (takes_pipe and stat.S_ISFIFO(mode)):
        return None
    kind = "a folder" if stat.S_ISDIR(mode) else "a device, a pipe or a socket"
    return PathFault(path, f"is {kind}, not a file", "name a file")


def path_fault(path: Path) -> PathFault | None:
    """Why there is no file or folder that this user can read; None: there is one.

    Args:
        path: the path; ``Path.exists`` would raise an error for one that is too long or below a closed folder.
    """
    try:
        path.stat()
    except (OSError, ValueError) as fault:
        return read_fault(path, fault)
    if not os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK):
        return read_fault(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    return None


def read_fault(path: Path, fault: OSError | ValueError) -> PathFault:
    """Why a path cannot be read, in the words of this project.

    Args:
        path: the path.
        fault: the error of a call that had the path; ``ValueError``: it has a null byte.
    """
    if isinstance(fault, ValueError):
        return PathFault(path, "is not a path: it has a null byte", "correct it")
    if not isinstance(fault, FileNotFoundError | NotADirectoryError):
        return PathFault(path, f"cannot be read: {fault.strerror}", _hint(fault))
    if path.is_symlink():
        return PathFault(path, "is a link to a file that does not exist", "correct the link", is_missing=True)
    return PathFault(path, "does not exist", "correct the path", is_missing=True)


def is_there(path: Path) -> bool:
    """Whether something is at a path, which may be unusable."""
    fault = path_fault(path)
    return fault is None or not fault.is_missing


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
    """Why this user cannot write a new file at a path; None: it can be done. Its parents may be missing.

    Args:
        path: where it will be.
    """
    try:
        path.lstat()
        return PathFault(path, "exists already", "name a new file")
    except (FileNotFoundError, NotADirectoryError):
        return folder_fault(path.absolute().parent)
    except OSError as fault:
        return PathFault(path, f"cannot be written: {fault.strerror}", _hint(fault))


def folder_fault(folder: Path, *, writes: bool = True) -> PathFault | None:
    """What keeps a path from being used as a folder; None if the folder exists or can be made, parents included.

    Args:
        folder: the folder.
        writes: whether this user must be allowed to write into it.
    """
    for there in (folder, *folder.absolute().parents):
        try:
            there.lstat()
            break
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # what is above it decides
        except OSError as fault:
            return PathFault(there, f"cannot be written: {fault.strerror}", _hint(fault))
    if not os.path.isdir(there):  # noqa: PTH112 - Path.is_dir raises where it may not look
        return PathFault(there, "is not a folder", "correct the path")
    if writes and not os.access(there, os.W_OK | os.X_OK):
        return PathFault(there, f"cannot be written: {os.strerror(errno.EACCES)}", ALLOW)
    return None


def _hint(fault: OSError) -> str:
    return ALLOW if isinstance(fault, PermissionError) else "correct the path"
