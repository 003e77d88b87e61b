"""Generates the keys of a stack: SSH key pairs and API keys."""

from __future__ import annotations

import hashlib
import secrets


def ssh_key_pair() -> tuple[str, str]:
    """A new ed25519 key pair: the private key in OpenSSH's format, the public key as ``type base64``."""
    import asyncssh  # half a second, and only a new stack needs it

    key = asyncssh.generate_private_key("ssh-ed25519")
    public = " ".join(key.export_public_key("openssh").decode().split()[:2])
    return key.export_private_key("openssh").decode(), public


def api_key() -> str:
    """A new API key: 32 random bytes, safe in an HTTP header."""
    return secrets.token_urlsafe(32)


def digest(key: str) -> str:
    """The digest of an API key, as ``api-keys.yml`` stores it."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
