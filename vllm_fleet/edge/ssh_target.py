"""The SSH address, user and keys of a host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """The SSH address, user and keys of a host.

    Attributes:
        host_keys: its public host keys, without the host's name; no other key is accepted.
        key_file: the private key; None uses the agent and the user's SSH configuration.
        command: arguments of the program ``ssh``, for what asyncssh cannot do (ProxyCommand, GSSAPI, hardware keys);
            None uses asyncssh.
        jump: the SSH gateway in front of it; None: direct.
        become_password: the user's password for sudo; None: sudo asks for none.
    """

    name: str
    address: str
    port: int
    user: str
    host_keys: tuple[str, ...]
    key_file: Path | None = None
    command: Sequence[str] | None = None
    jump: Target | None = None
    become_password: str | None = field(default=None, repr=False)
