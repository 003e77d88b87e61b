"""``gateway.tls`` -> the lines of ``haproxy.cfg`` for a CA's challenges, and what ``vllm-certificate`` reads on a host.

Each gateway has a certificate and a key of its own, and no key leaves its host. The CA asks any gateway that a name
leads to, so each gateway passes a challenge on to the others if its own certbot does not know it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vllm_fleet.base.addresses import host_port
from vllm_fleet.host.gateway_answers import error
from vllm_fleet.schema.acme import CERTBOT_PORT, CHALLENGE_PORT, Acme
from vllm_fleet.schema.fleet import Gateway

PROGRAM = "/usr/local/libexec/vllm-certificate"
SETTINGS = "/etc/haproxy/vllm-fleet-acme.json"
_CHALLENGES = "/.well-known/acme-challenge/"
#: What one gateway sends to another, which then asks its own certbot alone.
_HEADER = "x-vllm-fleet-challenge"
_REFUSAL = "This port answers the challenges of a CA only. The API is served over TLS: use https."


@dataclass(frozen=True)
class AcmeAccount:
    """Where the certificates come from.

    Attributes:
        acme: as the fleet has it.
        authority: the certificates that sign that of the CA's server, PEM; empty: the host's trust store.
    """

    acme: Acme
    authority: str = ""


@dataclass(frozen=True)
class Certificate:
    """The certificate of the gateways: from a file, from a CA, or none.

    Attributes:
        file: the file on the controller; None without a file.
        account: the account at the CA; None if no CA is asked.
        environment: the variables of the fleet's proxy, for certbot.
    """

    file: Path | None = None
    account: AcmeAccount | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> str:
        """The file that ``vllm-certificate`` reads, as JSON; empty where no CA is asked."""
        if self.account is None:
            return ""
        acme = self.account.acme
        record = {
            "directory": acme.directory,
            "email": acme.email,
            "names": list(acme.names),
            "authority": self.account.authority,
            "environment": dict(self.environment),
            "port": CERTBOT_PORT,
        }
        return json.dumps(record, indent=1, sort_keys=True) + "\n"


NO_CERTIFICATE = Certificate()


def challenge_lines(gateway: Gateway, addresses: Sequence[str]) -> list[str]:
    """The sections of ``haproxy.cfg`` for port 80; empty where no CA is asked.

    Everything but a challenge gets an error. A redirect would hide from a client that it has sent its API key without
    TLS.

    Args:
        gateway: the gateway of the fleet.
        addresses: the IP addresses of the gateways; with an IPv6 address among them it listens for IPv6 too.
    """
    if gateway.tls is None or gateway.tls.acme is None:
        return []
    is_ipv6 = any(":" in address for address in addresses)
    own = f"  server here 127.0.0.1:{CERTBOT_PORT}"
    others = [
        f"  server gateway_{number} {host_port(address, CHALLENGE_PORT)}" for number, address in enumerate(addresses)
    ]
    return [
        "frontend challenges",
        f"  bind {f'[::]:{CHALLENGE_PORT} v4v6' if is_ipv6 else f':{CHALLENGE_PORT}'}",
        "  maxconn 256",
        f"  http-request return {error(404, _REFUSAL)} unless METH_GET {{ path_beg {_CHALLENGES} }}",
        f"  use_backend challenge_here if {{ req.hdr({_HEADER}) -m found }}",
        "  default_backend challenge",
        "backend challenge",
        "  balance roundrobin",
        f"  http-request set-header {_HEADER} 1",
        # The gateway whose certbot has asked is found by asking them all: certbot listens for moments only.
        "  option redispatch 1",
        f"  retries {3 * (len(others) + 1)}",
        "  retry-on conn-failure 404 502 503",
        "  timeout connect 1s",
        "  timeout server 5s",
        own,
        *others,
        "backend challenge_here",
        "  retries 0",
        own,
    ]
