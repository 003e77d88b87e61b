"""Which names of models lead to which servers: the backends of the gateways."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Backend:
    """One vLLM process, as a server of the gateways.

    Attributes:
        host: its host.
        instance: its number on the host.
        address: where it listens.
        port: its port.
        model: the model that it serves.
        names: the names that clients give the model; empty: its own.
        seats: how many requests it works on at the same time; 0: unknown.
        context_tokens: the longest sequence that it takes; None: unknown.
        tool_server: whether it has a tool server for built-in tools.
    """

    host: str
    instance: str
    address: str
    port: int
    model: str
    names: tuple[str, ...] = ()
    seats: int = 0
    context_tokens: int | None = None
    tool_server: bool = False

    @property
    def server(self) -> str:
        """The name of its server at the gateways."""
        return f"{self.host}_{self.instance}"

    @property
    def number(self) -> int:
        """The number of its server: the same at each gateway and after each change, since clients are bound to it."""
        digest = hashlib.sha256(self.server.encode()).digest()
        return int.from_bytes(digest[:4], "big") % (1 << 30) + 1


@dataclass(frozen=True)
class Route:
    """The servers that some names of a model lead to.

    Attributes:
        backend: the name of HAProxy's backend.
        names: the names that clients give the model.
        servers: the vLLM processes.
    """

    backend: str
    names: tuple[str, ...]
    servers: tuple[Backend, ...]

    @property
    def seats(self) -> int:
        """How many requests all servers work on at the same time; 0: unknown."""
        each = [server.seats for server in self.servers]
        return sum(each) if all(each) else 0

    @property
    def tool_server(self) -> bool:
        """Whether all servers have a tool server."""
        return all(server.tool_server for server in self.servers)


def routes(backends: Sequence[Backend]) -> tuple[Route, ...]:
    """A route for each set of names, in the order of the names.

    Args:
        backends: every vLLM process.
    """
    groups: dict[tuple[str, ...], list[Backend]] = {}
    for backend in backends:
        groups.setdefault(backend.names or (backend.model,), []).append(backend)
    plain = Counter(_plain(names[0]) for names in groups)
    found = []
    for names, servers in sorted(groups.items()):
        name = _plain(names[0])
        if plain[name] > 1:
            name += "_" + hashlib.sha256(names[0].encode()).hexdigest()[:6]
        found.append(Route(f"model_{name}", names, tuple(servers)))
    return tuple(found)


def _plain(name: str) -> str:
    return "".join(char if char.isalnum() and char.isascii() else "_" for char in name)
