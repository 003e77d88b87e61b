"""Files that people name, read whole: only what is a file, not too large, and UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

from vllm_fleet.base import paths
from vllm_fleet.base.errors import UnusableFileError

#: Bytes of a file that people write; a fleet.yml of 1000 hosts takes 0.3 MiB.
MOST_BYTES = 8 * 2**20


def read_text(path: Path, *, takes_pipe: bool = False) -> str:
    """The text of a file, without the byte order mark that some editors add, with newlines as its only ends of lines.

    Args:
        path: the file.
        takes_pipe: as for :func:`read_bytes`.

    Raises:
        FleetError: as :func:`read_bytes`, or it is not UTF-8.
    """
    data = read_bytes(path, takes_pipe=takes_pipe)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line, column = data.count(b"\n", 0, fault.start) + 1, fault.start - data.rfind(b"\n", 0, fault.start)
        raise UnusableFileError(
            f"cannot be read: the byte 0x{data[fault.start]:02x} is not UTF-8",
            "save the file as UTF-8",
            paths.display(path),
            line,
            column=column,
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_bytes(path: Path, *, takes_pipe: bool = False) -> bytes:
    """The bytes of a file.

    Args:
        path: the file.
        takes_pipe: whether a pipe is read to its end too, such as ``<(command)`` of a shell.

    Raises:
        FleetError: it is missing.
        UnusableFileError: it is not a file (a folder, a device, a pipe), is too large, or cannot be read.
    """
    # Before it is opened: opening a device may do something.
    if fault := paths.file_fault(path, takes_pipe=takes_pipe):
        raise fault.error()
    try:
        # In between it may become a pipe, which O_NONBLOCK does not wait for.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if wrong := paths.kind_fault(path, mode, takes_pipe=takes_pipe):
                raise wrong.error()
            # A pipe is waited for; one that no program writes to ends at once.
            os.set_blocking(file.fileno(), True)
            # Not what stat said: files of the kernel have no size.
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise paths.read_fault(path, error).error() from None
    if len(data) > MOST_BYTES:
        most = MOST_BYTES // 2**20
        raise UnusableFileError(
            f"is too large: at most {most} MiB are read", "give the right file", paths.display(path)
        )
    return data
