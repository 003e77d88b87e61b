"""Scans SSH host keys, for the user to compare before anything trusts them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import shlex
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from vllm_fleet.base.foreign_text import clean_text
from vllm_fleet.edge.connection import CONCURRENCY, CONNECT_SECONDS, failure_text

#: The first kind in this order that a host has.
_KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512")
Address = tuple[str, int]


class UnknownNameError(OSError):
    """This machine does not resolve the name of a host."""


def fingerprint(key: str) -> str:
    """The fingerprint of a public key, as ``ssh-keygen -l`` prints it.

    Args:
        key: ``type base64``.
    """
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def scan_host_keys(addresses: Sequence[Address], proxies: Mapping[Address, str]) -> Mapping[Address, str | OSError]:
    """Requests the public host key of each host; trusts none of them.

    Args:
        addresses: address and port of each host.
        proxies: address -> the shell command whose input and output are the connection to it; others are direct.

    Returns:
        Address -> the key as ``type base64``, or the error.
    """
    return asyncio.run(_scan(addresses, proxies))


async def _scan(addresses: Sequence[Address], proxies: Mapping[Address, str]) -> Mapping[Address, str | OSError]:
    gate = asyncio.Semaphore(CONCURRENCY)

    async def scan_address(address: Address) -> str | OSError:
        async with gate:
            try:
                return await asyncio.wait_for(_request_key(address, proxies.get(address, "")), CONNECT_SECONDS * 3)
            except TimeoutError:
                return OSError(failure_text(TimeoutError()))
            except OSError as error:
                return error

    return dict(zip(addresses, await asyncio.gather(*(scan_address(address) for address in addresses)), strict=True))


async def _request_key(address: Address, proxy: str) -> str:
    with tempfile.TemporaryDirectory(prefix="vllm-fleet-ssh-") as scratch:
        errors = Path(scratch) / "errors"
        # asyncssh takes what comes by standard error for the host's words, and its end for the end of the connection:
        # the shell keeps it open, and no 'exec' of the last command closes it.
        command = ["sh", "-c", f"{{ {proxy}\n}} 2>{shlex.quote(str(errors))}; exit $?"] if proxy else None
        try:
            return await _request_key_by(address, command)
        except OSError as error:
            lines = errors.read_text(encoding="utf-8", errors="replace").split("\n") if errors.exists() else []
            told = [line.strip() for line in lines if line.strip()]
            kind = UnknownNameError if isinstance(error, socket.gaierror) else OSError
            raise kind(told[-1] if told else failure_text(error)) from None


async def _request_key_by(address: Address, proxy: Sequence[str] | None) -> str:
    import asyncssh

    reason = f"it has no host key of the kinds {', '.join(_KINDS)}"
    for kind in _KINDS:
        try:
            key = await asyncio.wait_for(
                asyncssh.get_server_host_key(
                    *address, server_host_key_algs=[kind], config=None, proxy_command=proxy if proxy else ()
                ),
                CONNECT_SECONDS,
            )
        except asyncssh.KeyExchangeFailed:
            continue
        except asyncssh.ConnectionLost as error:
            # A host without a key of this kind may close the connection before it answers.
            reason = clean_text(error.reason)
        except asyncssh.Error as error:
            raise OSError(clean_text(error.reason)) from None
        else:
            if key:
                return " ".join(key.export_public_key("openssh").decode().split()[:2])
    raise OSError(reason)
