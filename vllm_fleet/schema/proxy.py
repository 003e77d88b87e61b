"""The strict record of ``proxy`` in a fleet.yml: the HTTP proxy between the hosts and the internet."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from vllm_fleet.base.addresses import parse_host_address
from vllm_fleet.schema.recipe import Strict

_URL = re.compile(r"http://(?P<host>\[[^\]]+\]|[^:/@\[\]]+):(?P<port>[0-9]{1,5})/?")
_DOMAIN = re.compile(r"\.?[A-Za-z0-9]([A-Za-z0-9.:/-]*[A-Za-z0-9:])?")


def _proxy_url(value: str) -> str:
    """The URL in one form.

    Credentials are refused: the variables of a task are in the host's list of processes, and apt, uv and docker each
    would need a file of their own for them.
    """
    if "@" in value:
        raise ValueError(
            "a proxy URL with an account is not supported: let the proxy admit the hosts by their addresses, or give a "
            "proxy of your own that adds the account"
        )
    match = _URL.fullmatch(value)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError(f"{value!r} is not the URL of a proxy: write it such as http://proxy.example.org:3128")
    host = parse_host_address(match["host"])
    return f"http://{f'[{host}]' if ':' in host else host}:{int(match['port'])}"


def _no_proxy(value: str) -> str:
    if not _DOMAIN.fullmatch(value):
        raise ValueError(f"{value!r} is not a domain, an address or a network: write one for each item of the list")
    return value


ProxyUrl = Annotated[str, AfterValidator(_proxy_url)]


class Proxy(Strict):
    """The HTTP proxy through which the hosts download packages, images and weights; the fleet inside uses none."""

    http: ProxyUrl | None = Field(default=None, description="Proxy for http:// URLs, such as http://proxy:3128.")
    https: ProxyUrl | None = Field(default=None, description="Proxy for https:// URLs, by CONNECT.")
    no_proxy: list[Annotated[str, AfterValidator(_no_proxy)]] = Field(
        default=[],
        description="Domains and addresses that the hosts reach without it. The gateways and the mirror are added.",
    )

    @model_validator(mode="after")
    def _some(self) -> Proxy:
        if not self.http and not self.https:
            raise ValueError("gives neither 'http' nor 'https'")
        return self
