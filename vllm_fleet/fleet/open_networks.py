"""Networks that a fleet lets in: several together may be the internet, though each of them looks like less."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

#: The widest network that anyone has: 10.0.0.0/8 of a company, a /16 that a registry hands to a provider.
_WIDEST = {4: 8, 6: 16}


def too_wide(networks: Sequence[str]) -> Iterator[tuple[int, IPv4Network | IPv6Network]]:
    """What is too wide for a network of one owner.

    Args:
        networks: in CIDR form.

    Yields:
        The index of the first network of each such range, and the range.
    """
    listed = [ip_network(text) for text in networks]
    ranges: list[IPv4Network | IPv6Network] = [
        *collapse_addresses(network for network in listed if isinstance(network, IPv4Network)),
        *collapse_addresses(network for network in listed if isinstance(network, IPv6Network)),
    ]
    for whole in ranges:
        if whole.prefixlen < _WIDEST[whole.version]:
            yield next(index for index, network in enumerate(listed) if network.network_address in whole), whole
