"""A file that is named as a private key of SSH: what keeps ``ssh`` from using it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

from vllm_fleet.base import paths
from vllm_fleet.base.paths import PathFault

_PUBLIC = re.compile(rb"\s*(?:ssh-|ecdsa-|sk-|-{4,5} ?BEGIN (?:SSH2 |RSA )?PUBLIC KEY)")
#: The forms that OpenSSH reads.
_PRIVATE = re.compile(rb"\s*-----BEGIN ([A-Z0-9]+ )?(ENCRYPTED )?PRIVATE KEY-----")
_HEAD_BYTES = 200


def is_public_key(file: Path) -> bool:
    """Whether a file has a public key in place of a private one.

    Args:
        file: a file that can be read.
    """
    return _PUBLIC.match(_head(file)) is not None


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(_HEAD_BYTES)


def private_key_fault(file: Path) -> PathFault | None:
    """Why ``ssh`` takes a file for no private key of this user; None: it may be one.

    Args:
        file: the file.
    """
    if fault := paths.file_fault(file):
        return fault
    head = _head(file)
    if _PUBLIC.match(head):
        return PathFault(
            file, "is a public key", "give the private key beside it; leave it out where an agent holds that key"
        )
    if _PRIVATE.match(head) is None:
        return PathFault(file, "is not a private key of SSH", "correct the path")
    about = file.stat()
    # As ssh has it: a key of another user, such as root's for a group, may have any mode.
    if about.st_uid == os.getuid() and about.st_mode & 0o077:
        text = f"can be read by other users (mode {about.st_mode & 0o777:04o}), so ssh refuses it"
        return PathFault(file, text, f"chmod 600 {shlex.quote(paths.display(file))}")
    return None


def has_passphrase(file: Path) -> bool:
    """Whether a private key is encrypted; ``ssh-keygen`` is asked, which reads every form that ``ssh`` does.

    Args:
        file: a private key that :func:`private_key_fault` finds nothing wrong with.
    """
    words = ["ssh-keygen", "-y", "-P", "", "-f", str(file)]
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode != 0
