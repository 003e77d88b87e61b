"""How one host is reached over SSH."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """How one host is reached.

    Attributes:
        host_keys: the lines of its public keys, without the host's name; nothing else is taken.
        key_file: the private key; None leaves it to the agent and the user's own SSH configuration.
        command: arguments of ``ssh`` itself, for hosts that need what asyncssh cannot do (ProxyCommand,
            GSSAPI, hardware keys); None for all others.
        jump: the gateway that it is reached through; None: straight.
    """

    name: str
    address: str
    port: int
    user: str
    host_keys: tuple[str, ...]
    key_file: Path | None = None
    command: Sequence[str] | None = None
    jump: Target | None = None
