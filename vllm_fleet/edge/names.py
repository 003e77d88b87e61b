"""DNS names -> IP addresses, as this machine resolves them: hosts file, search domains, resolvers."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from vllm_fleet.base.addresses import IpAddress

#: The resolver of the C library waits for each answer; a fleet with one name a host asks many at once.
_AT_A_TIME = 32


def resolve_names(names: Iterable[str]) -> Mapping[str, tuple[IpAddress, ...] | str]:
    """Resolves names, each once in a process, so that all parts of a run use the same addresses.

    Args:
        names: DNS names.

    Returns:
        Name -> its addresses, IPv4 before IPv6 and in order, or the reason why there are none.
    """
    asked = list(names)
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        return dict(zip(asked, pool.map(_resolve, asked), strict=True))


@cache
def _resolve(name: str) -> tuple[IpAddress, ...] | str:
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        return error.strerror or str(error) if isinstance(error, socket.gaierror) else str(error)
    # An IPv6 answer may have a zone, which only this machine knows; such an address is link-local.
    addresses = {ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers}
    return tuple(sorted(addresses, key=lambda address: (address.version, int(address))))
