"""Keys that a stack makes for its hosts and clients."""

from __future__ import annotations

import hashlib
import secrets


def ssh_key_pair() -> tuple[str, str]:
    """A new ed25519 key: the private part in OpenSSH's format, the public one as ``type base64``."""
    import asyncssh  # half a second, and only a new stack needs it

    key = asyncssh.generate_private_key("ssh-ed25519")
    public = " ".join(key.export_public_key("openssh").decode().split()[:2])
    return key.export_private_key("openssh").decode(), public


def api_key() -> str:
    """A new API key: 32 random bytes, safe in a header."""
    return secrets.token_urlsafe(32)


def digest(key: str) -> str:
    """What ``api-keys.yml`` holds of a key."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
