"""The constant files of the roles: the manifest takes their digests from where the roles take the files."""

from __future__ import annotations

import hashlib
from functools import cache

from vllm_fleet.base import paths


@cache
def role_file(role: str, name: str) -> bytes:
    """A file under ``roles/<role>/files``."""
    return (paths.root() / "roles" / role / "files" / name).read_bytes()


def role_file_sha256(role: str, name: str) -> str:
    """Its digest."""
    return hashlib.sha256(role_file(role, name)).hexdigest()


#: The unit of each install form, and the programs that it starts.
_UNIT_FILES = {
    "wheel": ("vllm@.service", "vllm-instance"),
    "docker": ("vllm-docker@.service", "vllm-instance", "vllm-container"),
}


def unit_digest(install: str) -> str:
    """A digest of the vLLM unit and of the programs that it starts: another one means another release.

    Args:
        install: the install form, ``wheel`` or ``docker``.
    """
    files = [role_file("vllm_service", name) for name in _UNIT_FILES[install]]
    return hashlib.sha256(b"".join(files)).hexdigest()[:16]
