"""The constant files of the roles, and their digests for the manifest."""

from __future__ import annotations

import hashlib
from functools import cache

from vllm_fleet.base import paths


@cache
def role_file(role: str, name: str) -> bytes:
    """A file under ``roles/<role>/files``."""
    return (paths.root() / "roles" / role / "files" / name).read_bytes()


def role_file_sha256(role: str, name: str) -> str:
    """The SHA-256 of a file under ``roles/<role>/files``."""
    return hashlib.sha256(role_file(role, name)).hexdigest()


#: The unit of each install form, and the programs that it starts.
_UNIT_FILES = {
    "wheel": ("vllm@.service", "vllm-instance"),
    "docker": (
        *("vllm-docker@.service", "vllm-container@.socket", "vllm-container@.service"),
        *("vllm-instance", "vllm-container", "vllm-container-root"),
    ),
}


def unit_digest(install: str) -> str:
    """A digest of the vLLM unit and the programs that it starts; a new digest makes a new release.

    Args:
        install: the install form, ``wheel`` or ``docker``.
    """
    files = [role_file("vllm_service", name) for name in _UNIT_FILES[install]]
    return hashlib.sha256(b"".join(files)).hexdigest()[:16]
