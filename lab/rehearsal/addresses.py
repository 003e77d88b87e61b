"""The addresses of an emulated cloud: the lowest one of a range that nothing has."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network

#: Public addresses: the range for benchmarks (RFC 2544), which the internet does not route.
PUBLIC = IPv4Network("198.18.0.0/15")
#: Private addresses where the program leaves the range of a network to the cloud.
CHOSEN = IPv4Network("10.108.0.0/16")
#: Addresses at the beginning of a range that no host gets; a small range gives a quarter.
_KEPT = 11


class Addresses:
    """The addresses in use, by network: two networks may have the same range."""

    def __init__(self) -> None:
        self._used: dict[str, dict[int, int]] = {}
        #: Network -> the lowest number that may be free.
        self._lowest: dict[str, int] = {}

    def free(self, network: str, block: IPv4Network) -> str | None:
        """The lowest free address; None where all are in use.

        Args:
            network: the id of the network; empty for public addresses.
            block: its range.
        """
        used = self._used.get(network, {})
        first = int(block.network_address)
        number = max(self._lowest.get(network, 0), first + min(_KEPT, block.num_addresses // 4))
        while number in used:
            number += 1
        self._lowest[network] = number
        return str(block[number - first]) if number < first + block.num_addresses - 1 else None

    def take(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Marks addresses as in use; several resources may have one, such as a host and its public address.

        Args:
            pairs: network and address.
        """
        for network, address in pairs:
            used = self._used.setdefault(network, {})
            used[_number(address)] = used.get(_number(address), 0) + 1

    def give_back(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Ends what :meth:`take` began."""
        for network, address in pairs:
            number, used = _number(address), self._used[network]
            used[number] -= 1
            if not used[number]:
                del used[number]
                self._lowest[network] = min(self._lowest.get(network, number), number)


def _number(address: str) -> int:
    first, second, third, fourth = map(int, address.split("."))
    return first << 24 | second << 16 | third << 8 | fourth
