"""The SSH address, user and keys of a host."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """The SSH address, user and keys of a host.

    Attributes:
        host_keys: its public host keys, without the host's name; no other key is accepted.
        key_file: the private key; None uses the agent and the user's default keys.
        config_file: the configuration of ``ssh``; None uses that of the user and the system.
        arguments: further arguments of the program ``ssh``, as Ansible's variables have them.
        alias: the host's name in ssh's configuration; empty: the address.
        jump: the bastion or gateway in front of it; None: direct.
        authorities: public keys of certificate authorities; a host key with a certificate of one is accepted.
        program: the program ``ssh``.
        keys_file: the file that contains its host keys, for messages.
        become_password: the user's password for sudo; None: sudo asks for none.
    """

    name: str
    address: str
    port: int
    user: str
    host_keys: tuple[str, ...]
    key_file: Path | None = None
    config_file: Path | None = None
    arguments: tuple[str, ...] = ()
    alias: str = ""
    jump: Target | None = None
    authorities: tuple[str, ...] = ()
    program: str = "ssh"
    keys_file: str = "the fleet"
    become_password: str | None = field(default=None, repr=False)

    @property
    def changed_key_error(self) -> str:
        """The error where the host shows a key that is not in :attr:`host_keys`."""
        return (
            f"{self.address} shows another SSH host key than {self.keys_file} has: the host was installed again, it is "
            "another machine, or the connection is intercepted. On its console, compare 'ssh-keygen -lf "
            f"/etc/ssh/ssh_host_ed25519_key.pub'; if it is your host, correct its key in {self.keys_file}"
        )
