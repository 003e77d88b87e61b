"""Applies the ``#cloud-config`` of a host like cloud-init, for the keys that :mod:`infra.cloud_init` writes.

It replaces cloud-init, which the lab's file tree does not contain. An unknown key is an error, so that nothing is
ignored silently. Keys and what they do: cloud-init's module reference (Users and
Groups, SSH, Set Passwords), from memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from lab.rehearsal.cloud import RefusedError

_KNOWN = {"users", "disable_root", "ssh_pwauth", "ssh_deletekeys", "ssh_genkeytypes", "ssh_keys"}
_USER_KNOWN = {"name", "shell", "lock_passwd", "sudo", "ssh_authorized_keys"}


@dataclass(frozen=True)
class Account:
    """The login, and the host key.

    Attributes:
        keys: the lines of ``authorized_keys``.
        private_host_key: in OpenSSH's format.
    """

    user: str
    keys: tuple[str, ...]
    host_key: str
    private_host_key: str


def read(text: str) -> Account:
    """The account in the user data of a host.

    Raises:
        RefusedError: it is no cloud-config, or has an unknown key.
    """
    first, _, rest = text.partition("\n")
    if first.strip() != "#cloud-config":
        raise RefusedError(f"the user data begins with {first!r}, and cloud-init wants #cloud-config")
    data: dict[str, Any] = yaml.safe_load(rest)
    (account,) = data["users"]
    if unknown := sorted((set(data) - _KNOWN) | (set(account) - _USER_KNOWN)):
        raise RefusedError(f"this rehearsal of cloud-init does not know: {', '.join(unknown)}")
    if data["ssh_pwauth"] or data["ssh_genkeytypes"] or not data["ssh_deletekeys"]:
        raise RefusedError("the user data leaves a password or a host key that the stack does not know")
    if account["sudo"] != "ALL=(ALL) NOPASSWD:ALL" and account["name"] != "root":
        raise RefusedError(f"the user {account['name']} may not become root without a password")
    keys = data["ssh_keys"]
    return Account(
        user=account["name"],
        keys=tuple(account["ssh_authorized_keys"]),
        host_key=keys["ed25519_public"],
        private_host_key=keys["ed25519_private"],
    )
