"""The password for sudo on hosts, from where users of Ansible put it; it is sent on standard input only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_fleet.base import paths, text_files
from vllm_fleet.base.errors import FleetError

#: The variables of a host that hold it; the first that is set counts.
_VARIABLES = ("ansible_become_password", "ansible_become_pass")
_SCRIPT_SECONDS = 60


def find_password(variables: Mapping[str, Any], asked: str | None) -> str | None:
    """The password for one host; None: sudo asks for none.

    Args:
        variables: the host's variables in Ansible.
        asked: the password of ``--ask-become-pass`` or ``--become-password-file``.
    """
    given = next((variables[name] for name in _VARIABLES if variables.get(name)), asked)
    return str(given) if given else None


def read_file(file: Path) -> str:
    """The password in a file or a pipe; a file that is executable is run, as Ansible does, and prints it.

    Raises:
        FleetError: it cannot be read, fails, or has no password.
    """
    shown, key = paths.display(file), "--become-password-file"
    try:
        # A folder is "executable" too. Path.is_file raises for what the user may not look at.
        if os.path.isfile(file) and os.access(file, os.X_OK):  # noqa: PTH113
            words = [str(paths.absolute(file))]
            text = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=_SCRIPT_SECONDS).stdout
        else:
            text = text_files.read_text(file, takes_pipe=True)
    except FleetError as wrong:
        wrong.key, wrong.hint = key, "give a file with the password for sudo"
        raise
    except (OSError, UnicodeDecodeError, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise FleetError(
            f"cannot be read: {reason}", "give a file with the password for sudo", shown, key=key
        ) from None
    password = text.strip("\r\n")
    if not password or "\n" in password:
        raise FleetError("contains no password of one line", "write the password for sudo into it", shown, key=key)
    return password
