"""SSH host keys as hosts show them, for a person to compare before anything trusts them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Mapping, Sequence

from vllm_fleet.edge.connection import CONCURRENCY, CONNECT_SECONDS

#: In this order: the first kind that a host has.
_KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512")
Address = tuple[str, int]


def fingerprint(key: str) -> str:
    """The fingerprint of a public key, as ``ssh-keygen -l`` prints it.

    Args:
        key: ``type base64``.
    """
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def shown(addresses: Sequence[Address]) -> Mapping[Address, str | OSError]:
    """The public key that each host shows, ``type base64``, or why it shows none. Nothing is trusted by this.

    Args:
        addresses: address and port of each host.
    """
    return asyncio.run(_all(addresses))


async def _all(addresses: Sequence[Address]) -> Mapping[Address, str | OSError]:
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(address: Address) -> str | OSError:
        async with gate:
            try:
                return await asyncio.wait_for(_key(*address), CONNECT_SECONDS * len(_KINDS))
            except TimeoutError:
                return OSError("no answer in time")
            except OSError as fault:
                return fault

    return dict(zip(addresses, await asyncio.gather(*(one(address) for address in addresses)), strict=True))


async def _key(address: str, port: int) -> str:
    import asyncssh

    why = f"it has no host key of the kinds {', '.join(_KINDS)}"
    for kind in _KINDS:
        try:
            key = await asyncio.wait_for(
                asyncssh.get_server_host_key(address, port, server_host_key_algs=[kind], config=None), CONNECT_SECONDS
            )
        except asyncssh.KeyExchangeFailed:
            continue
        except asyncssh.ConnectionLost as fault:
            # A host without a key of this kind may hang up before it has said so.
            why = fault.reason
        except asyncssh.Error as fault:
            raise OSError(fault.reason) from None
        else:
            if key:
                return " ".join(key.export_public_key("openssh").decode().split()[:2])
    raise OSError(why)
