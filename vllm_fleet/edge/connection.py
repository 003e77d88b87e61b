"""SSH connections from the controller, direct or through a gateway that many hosts share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from vllm_fleet.base.foreign_text import clean_text
from vllm_fleet.edge.ssh_target import Target

CONNECT_SECONDS = 15.0
#: How many hosts one process connects to at the same time.
CONCURRENCY = 64
#: Preferred: a sixth less CPU for each host than ChaCha20, most of which asyncssh computes in Python.
_CIPHERS = "^aes128-gcm@openssh.com"


class NoAnswerError(Exception):
    """A host cannot be reached; the message tells the user why, without control characters of the host's."""

    def __init__(self, reason: str) -> None:
        super().__init__(clean_text(reason))


class JumpHosts:
    """Connections to the SSH gateways of hosts: one for each gateway, shared by all hosts behind it."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._open: dict[str, asyncio.Task[Any]] = {}

    async def __aenter__(self) -> JumpHosts:
        return self

    async def __aexit__(self, *_error: object) -> None:
        for task in self._open.values():
            task.cancel()
        await asyncio.gather(*self._open.values(), return_exceptions=True)
        await self._stack.aclose()

    async def connect(self, jump: Target) -> Any:
        """The connection to a gateway, opened on first use.

        Raises:
            NoAnswerError: the gateway cannot be reached.
        """
        if jump.name not in self._open:
            self._open[jump.name] = asyncio.ensure_future(self._stack.enter_async_context(connect(jump, self)))
        try:
            return await asyncio.shield(self._open[jump.name])
        except NoAnswerError as error:
            # The next call opens a new connection.
            self._open.pop(jump.name, None)
            raise NoAnswerError(f"cannot be reached through {jump.name}: {error}") from None


@asynccontextmanager
async def connect(target: Target, jump_hosts: JumpHosts) -> AsyncIterator[Any]:
    """A connection to a host whose host key is verified.

    Args:
        target: the host.
        jump_hosts: the SSH gateways of this run.

    Raises:
        NoAnswerError: the host cannot be reached, has another host key, or refuses the user.
    """
    import asyncssh

    options: dict[str, Any] = {"known_hosts": ([asyncssh.import_public_key(key) for key in target.host_keys], [], [])}
    if target.key_file:
        if not target.key_file.is_file():
            raise NoAnswerError(f"the private key {target.key_file} does not exist")
        options |= {
            "client_keys": [_private_key(target.key_file)],
            "agent_path": None,
            "config": None,
            "encryption_algs": _CIPHERS,
        }
    if target.jump:
        options["tunnel"] = await jump_hosts.connect(target.jump)
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
            f"{target.address} shows another SSH host key than the one in stack.json: it is another machine, or it was "
            "replaced without 'pulumi up'"
        ) from None
    except asyncssh.PermissionDenied:
        raise NoAnswerError(f"{target.user}@{target.address} refuses the key") from None
    except (asyncssh.Error, OSError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise NoAnswerError(f"cannot be reached at {target.address} port {target.port}: {reason}") from None


@cache
def _private_key(file: Path) -> Any:
    import asyncssh

    return asyncssh.read_private_key(str(file))
