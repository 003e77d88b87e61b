"""The constant files of the roles: the manifest takes their digests from where the roles take the files."""

from __future__ import annotations

import hashlib
from functools import cache

from vllm_fleet import paths


@cache
def role_file(role: str, name: str) -> bytes:
    """A file under ``roles/<role>/files``."""
    return (paths.root() / "roles" / role / "files" / name).read_bytes()


def role_file_sha256(role: str, name: str) -> str:
    """Its digest."""
    return hashlib.sha256(role_file(role, name)).hexdigest()


def unit_digest() -> str:
    """A digest of the vLLM unit and of the program that it starts: another one means another release."""
    both = role_file("vllm_service", "vllm@.service") + role_file("vllm_service", "vllm-instance")
    return hashlib.sha256(both).hexdigest()[:16]
