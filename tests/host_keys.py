"""Public SSH keys of hosts that do not exist: whole ed25519 keys, in which a reader sees a name."""

from __future__ import annotations


def public_key(name: str) -> str:
    """A key as ``type base64``.

    Args:
        name: what its base64 repeats; letters and digits, the first from A to P, whose top bits end a length.
    """
    return f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{(name * 43)[:43]}"
