"""Files with a secret: read only where no other user can."""

from __future__ import annotations

from pathlib import Path

from vllm_fleet.base import text_files
from vllm_fleet.base.errors import FleetError


def read_secret(file: Path, what: str, *, takes_pipe: bool = False) -> str:
    """The secret in a file, without blanks around it.

    Args:
        file: the file.
        what: what it contains, for messages.
        takes_pipe: whether a pipe is read too: where the user of the command line names it, not a file of the fleet.

    Raises:
        FleetError: the file is missing, empty, of more than one line, or readable by other users.
    """
    try:
        text = text_files.read_text(file, takes_pipe=takes_pipe).strip()
        mode = file.stat().st_mode
    except FleetError as fault:
        fault.hint = f"give the path of the file with {what}"
        raise
    if not text or len(text.splitlines()) > 1:
        raise FleetError(f"must have one line, {what}", f"write {what} into it", str(file))
    if mode & 0o077:
        raise FleetError("is readable by other users", f"chmod 600 {file}", str(file))
    return text
