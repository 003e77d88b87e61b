"""What a rented host is told at its first boot: its SSH host key and who may log in. Nothing else is done there.

The host key stands in the user data, which processes on the host can read: playbooks/rotate-host-keys.yml has each
host make a key of its own after the first contact.
"""

from __future__ import annotations

import base64
import json

import pulumi

from infra.keys import SshKeyPair


def user_data(user: str, authorised_keys: pulumi.Input[str], host_key: SshKeyPair) -> pulumi.Output[str]:
    """The ``#cloud-config`` of one host, a secret.

    Args:
        user: who logs in, with sudo and without a password.
        authorised_keys: public keys, a line for each.
        host_key: the SSH host key that sshd shows from its first answer on.
    """

    def text(parts: list[str]) -> str:
        keys, private, public = parts
        account = {
            "name": user,
            # A login shell that reads somebody's profile costs seconds a command.
            "shell": "/bin/bash",
            "lock_passwd": True,
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
            "ssh_authorized_keys": keys.splitlines(),
        }
        config = {
            "users": [account],
            "disable_root": user != "root",
            "ssh_pwauth": False,
            "ssh_deletekeys": True,
            "ssh_genkeytypes": [],
            "ssh_keys": {"ed25519_private": private, "ed25519_public": public},
        }
        # JSON is YAML, and cloud-init asks for the first line only.
        return f"#cloud-config\n{json.dumps(config, indent=1)}\n"

    return pulumi.Output.secret(
        pulumi.Output.all(authorised_keys, host_key.private_key, host_key.public_key).apply(text)
    )


def encoded_user_data(user: str, authorised_keys: pulumi.Input[str], host_key: SshKeyPair) -> pulumi.Output[str]:
    """:func:`user_data` in Base64, for clouds that take it so."""
    return user_data(user, authorised_keys, host_key).apply(lambda text: base64.b64encode(text.encode()).decode())
