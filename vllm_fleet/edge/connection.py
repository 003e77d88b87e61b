"""One SSH connection from the controller, straight or through a gateway that many hosts share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from vllm_fleet.edge.ssh_target import Target

CONNECT_SECONDS = 15.0
#: Hosts that one process talks to at the same time.
CONCURRENCY = 64
#: Asked for first: a sixth less CPU for each host than ChaCha20, most of which asyncssh does in Python.
_CIPHERS = "^aes128-gcm@openssh.com"


class NoAnswerError(Exception):
    """A host that cannot be asked, with the reason as a user would read it."""


class Ways:
    """The connections to the gateways that hosts are reached through: one each, however many hosts are behind it."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._open: dict[str, asyncio.Task[Any]] = {}

    async def __aenter__(self) -> Ways:
        return self

    async def __aexit__(self, *_fault: object) -> None:
        for task in self._open.values():
            task.cancel()
        await asyncio.gather(*self._open.values(), return_exceptions=True)
        await self._stack.aclose()

    async def to(self, jump: Target) -> Any:
        """The connection to a gateway.

        Raises:
            NoAnswerError: the gateway cannot be reached.
        """
        if jump.name not in self._open:
            self._open[jump.name] = asyncio.ensure_future(self._stack.enter_async_context(connected(jump, self)))
        try:
            return await asyncio.shield(self._open[jump.name])
        except NoAnswerError as fault:
            # Who asks again gets a new connection.
            self._open.pop(jump.name, None)
            raise NoAnswerError(f"cannot be reached through {jump.name}: {fault}") from None


@asynccontextmanager
async def connected(target: Target, ways: Ways) -> AsyncIterator[Any]:
    """A connection to a host that shows just the key that it should.

    Args:
        target: the host.
        ways: the gateways of this run.

    Raises:
        NoAnswerError: the host cannot be reached, shows another key or refuses the user.
    """
    import asyncssh

    options: dict[str, Any] = {"known_hosts": ([asyncssh.import_public_key(key) for key in target.host_keys], [], [])}
    if target.key_file:
        if not target.key_file.is_file():
            raise NoAnswerError(f"there is no private key {target.key_file}")
        options |= {
            "client_keys": [_private_key(target.key_file)],
            "agent_path": None,
            "config": None,
            "encryption_algs": _CIPHERS,
        }
    if target.jump:
        options["tunnel"] = await ways.to(target.jump)
    try:
        async with asyncssh.connect(
            target.address,
            target.port,
            username=target.user,
            connect_timeout=CONNECT_SECONDS,
            gss_host=None,
            **options,
        ) as connection:
            yield connection
    except asyncssh.HostKeyNotVerifiable:
        raise NoAnswerError(
            f"{target.address} shows another SSH host key than stack.json gives: it is another machine, or it was made "
            "again without 'pulumi up'"
        ) from None
    except asyncssh.PermissionDenied:
        raise NoAnswerError(f"{target.user}@{target.address} refuses the key") from None
    except (asyncssh.Error, OSError, TimeoutError) as fault:
        reason = str(fault) or type(fault).__name__
        raise NoAnswerError(f"cannot be reached at {target.address} port {target.port}: {reason}") from None


@cache
def _private_key(file: Path) -> Any:
    import asyncssh

    return asyncssh.read_private_key(str(file))
