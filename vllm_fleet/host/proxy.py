"""The fleet's HTTP proxy as its hosts use it: variables of tasks, lines of apt's configuration, a drop-in for units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vllm_fleet.base.addresses import bracketed
from vllm_fleet.schema.proxy import Proxy

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class HostProxy:
    """The proxy of a fleet.

    Attributes:
        http: its URL for ``http://``; empty for none.
        https: its URL for ``https://``; empty for none.
        direct: the hosts that are reached without it.
    """

    http: str = ""
    https: str = ""
    direct: tuple[str, ...] = ()

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that programs read; some read only the one spelling, some only the other."""
        if not self.http and not self.https:
            return {}
        variables = {"http_proxy": self.http, "https_proxy": self.https, "no_proxy": ",".join(self.direct)}
        return {name: value for lower, value in variables.items() if value for name in (lower, lower.upper())}

    @property
    def apt_config(self) -> str:
        """Lines of apt's configuration. They replace a proxy of the host's own configuration."""
        if not self.http and not self.https:
            return ""
        schemes = {"http": self.http, "https": self.https}
        lines = [f'Acquire::{scheme}::Proxy "{url or "DIRECT"}";' for scheme, url in schemes.items()]
        # Neither an IPv6 address nor a domain can be a part of the option's name; for tasks no_proxy holds.
        hosts = [host for host in self.direct if ":" not in host and "/" not in host and not host.startswith(".")]
        lines += [f'Acquire::{scheme}::Proxy::{host} "DIRECT";' for host in hosts for scheme in schemes]
        return "".join(f"{line}\n" for line in lines)

    @property
    def drop_in(self) -> str:
        """A drop-in for units that download. Without a proxy it sets nothing, so an earlier one ends with it."""
        lines = "".join(f'Environment="{name}={value}"\n' for name, value in sorted(self.environment.items()))
        return f"# Made by vllm-fleet; another run replaces what is changed here.\n[Service]\n{lines}"


def host_proxy(proxy: Proxy | None, inside: Iterable[str]) -> HostProxy:
    """The proxy of a fleet.

    Args:
        proxy: as the fleet gives it; None for no proxy.
        inside: the addresses and names that the fleet itself downloads from.
    """
    if proxy is None:
        return HostProxy()
    hosts = dict.fromkeys((*_LOOPBACK, *inside, *proxy.no_proxy))
    # Python compares the host as the URL has it, with brackets; others want it without.
    direct = dict.fromkeys(form for host in hosts for form in (host, *([bracketed(host)] if _is_ipv6(host) else [])))
    return HostProxy(proxy.http or "", proxy.https or "", tuple(direct))


def _is_ipv6(host: str) -> bool:
    return ":" in host and "/" not in host
