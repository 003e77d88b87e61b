"""Files that people name, read whole: only what is a file, not too large, and UTF-8."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError

#: Bytes of a file that people write; a fleet.yml of 1000 hosts takes 0.3 MiB.
MOST_BYTES = 8 * 2**20


def read_text(path: Path) -> str:
    """The text of a file, without the byte order mark that some editors add, with newlines as its only ends of lines.

    Raises:
        FleetError: as :func:`read_bytes`, or it is not UTF-8.
    """
    data = read_bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line, column = data.count(b"\n", 0, fault.start) + 1, fault.start - data.rfind(b"\n", 0, fault.start)
        raise FleetError(
            f"cannot be read: the byte 0x{data[fault.start]:02x} is not UTF-8",
            "save the file as UTF-8",
            paths.display(path),
            line,
            column=column,
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        FleetError: it is missing, is not a file (a folder, a device, a pipe), is too large, or cannot be read.
    """
    try:
        return _read(path)
    except FileNotFoundError:
        raise FleetError("file not found", file=paths.display(path)) from None
    except PermissionError as fault:
        raise FleetError(f"cannot be read: {fault.strerror}", "correct its permissions", paths.display(path)) from None
    except (OSError, ValueError) as fault:
        # ValueError: a path with a null byte.
        why = fault.strerror if isinstance(fault, OSError) else str(fault)
        raise FleetError(f"cannot be read: {why}", "correct the path", paths.display(path)) from None


def _read(path: Path) -> bytes:
    # Before it is opened: opening a device may do something.
    _expect_file(path, path.stat())
    # Between both calls it may become a pipe, which O_NONBLOCK does not wait for.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        _expect_file(path, os.fstat(file.fileno()))
        # Not what stat said: files of the kernel have no size.
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise _too_large(path)
    return data


def _expect_file(path: Path, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise FleetError("is not a file", "give the path of a file", paths.display(path))
    if info.st_size > MOST_BYTES:
        raise _too_large(path)


def _too_large(path: Path) -> FleetError:
    return FleetError(
        f"is too large: at most {MOST_BYTES // 2**20} MiB are read", "give the right file", paths.display(path)
    )
