"""The cloud-init configuration of a rented host: its SSH host key and its login. Nothing else happens at first boot.

Processes on the host can read the user data, and so the host key in it. playbooks/rotate-host-keys.yml makes each host
generate a new key after the first contact.
"""

from __future__ import annotations

import base64
import json

import pulumi

from infra.keys import SshKeyPair


def user_data(user: str, authorised_keys: pulumi.Input[str], host_key: SshKeyPair) -> pulumi.Output[str]:
    """The ``#cloud-config`` of one host, as a secret output.

    Args:
        user: the login, with sudo and without a password.
        authorised_keys: public keys, one a line.
        host_key: the SSH host key of sshd from its first start on.
    """

    def text(parts: list[str]) -> str:
        keys, private, public = parts
        account = {
            "name": user,
            # Other shells may read profiles that cost seconds a command.
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
        # JSON is YAML; cloud-init requires only the first line.
        return f"#cloud-config\n{json.dumps(config, indent=1)}\n"

    return pulumi.Output.secret(
        pulumi.Output.all(authorised_keys, host_key.private_key, host_key.public_key).apply(text)
    )


def encoded_user_data(user: str, authorised_keys: pulumi.Input[str], host_key: SshKeyPair) -> pulumi.Output[str]:
    """:func:`user_data` in Base64, for clouds that expect it."""
    return user_data(user, authorised_keys, host_key).apply(lambda text: base64.b64encode(text.encode()).decode())
