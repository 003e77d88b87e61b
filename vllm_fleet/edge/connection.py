"""SSH connections from the controller, direct or through a gateway that many hosts share."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.foreign_text import clean_text
from vllm_fleet.edge.ssh_target import Target

CONNECT_SECONDS = 15.0
_KEEPALIVE_SECONDS = 15.0
#: How many hosts one process connects to at the same time.
CONCURRENCY = 64
#: Preferred: a sixth less CPU for each host than ChaCha20, most of which asyncssh computes in Python.
_CIPHERS = "^aes128-gcm@openssh.com"


_CALL = re.compile(r"\[Errno ([0-9]{1,4})\] Connect call failed \([^)]*\)")
_NOISE = re.compile(r"^Multiple exceptions: |\[Errno -?[0-9]{1,4}\] ")


class NoAnswerError(Exception):
    """A host cannot be reached; the message tells the user why, without control characters of the host's."""

    def __init__(self, reason: str) -> None:
        super().__init__(clean_text(reason))


def failure_text(error: Exception) -> str:
    """Why a connection failed, in the words of the system, without Python's."""
    if isinstance(error, TimeoutError) and not error.errno:
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    # asyncio gives the failure of each address of a name in one text; a library repeats the system's with its number.
    text = _CALL.sub(lambda found: os.strerror(int(found[1])), str(error))
    return _NOISE.sub("", text) or "the connection ended"


#: How many processes of ``ssh`` one run has at the same time. By default, the sshd of a jump host refuses some of the
#: connections when more than 10 of them have not logged in yet (MaxStartups in sshd_config).
PROCESSES = 8


class NotPossibleError(NoAnswerError):
    """A host cannot be reached with this library; the program ``ssh`` may reach it, with an agent or other keys."""


class CommandFailedError(NoAnswerError):
    """A host was reached, and the command failed there: to ask again is of no use."""


class JumpHosts:
    """Connections to the SSH gateways of hosts: one for each gateway, shared by all hosts behind it."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._open: dict[str, asyncio.Task[Any]] = {}
        #: Limits the processes of ``ssh``.
        self.processes = asyncio.Semaphore(PROCESSES)

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
            raise type(error)(f"cannot be reached through {jump.name}: {error}") from None


@asynccontextmanager
async def connect(target: Target, jump_hosts: JumpHosts) -> AsyncIterator[Any]:
    """A connection to a host whose host key is verified.

    Args:
        target: the host.
        jump_hosts: the SSH gateways of this run.

    Raises:
        NotPossibleError: the host refuses the user, or the key is in a form that only ``ssh`` reads.
        NoAnswerError: the host cannot be reached, or has another host key.
    """
    import asyncssh

    trusted = [[asyncssh.import_public_key(key) for key in keys] for keys in (target.host_keys, target.authorities)]
    # The configuration is ssh's: where it matters, that program reaches the host.
    options: dict[str, Any] = {"known_hosts": (*trusted, []), "config": None, "encryption_algs": _CIPHERS}
    # A command may take as long as a large model needs to start; a host whose network is gone is noticed meanwhile.
    options |= {"keepalive_interval": _KEEPALIVE_SECONDS, "keepalive_count_max": 4}
    if target.key_file:
        options |= {"client_keys": _private_keys(target.key_file), "agent_path": None}
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
        raise NoAnswerError(target.changed_key_error) from None
    except asyncssh.PermissionDenied:
        raise NotPossibleError(f"{target.user}@{target.address} refuses the key") from None
    except asyncssh.KeyExchangeFailed as error:
        raise NotPossibleError(f"cannot agree on algorithms with {target.address}: {error.reason}") from None
    except (asyncssh.Error, OSError, TimeoutError) as error:
        reason = failure_text(error)
        raise NoAnswerError(f"cannot be reached at {target.address} port {target.port}: {reason}") from None


@cache
def _private_keys(file: Path) -> Any:
    """A private key, with the certificate beside it if there is one."""
    import asyncssh

    if fault := paths.file_fault(file):
        raise NoAnswerError(f"the private key {fault.message}")
    try:
        return asyncssh.load_keypairs(str(file))
    except (asyncssh.KeyEncryptionError, asyncssh.KeyImportError) as error:
        raise NotPossibleError(f"the private key {file} cannot be read: {error}") from None
