"""The strict records of ``gateway.tls`` in a fleet.yml: a certificate from a file, or from a CA by ACME."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from vllm_fleet.base.addresses import parse_host_address, parse_ip
from vllm_fleet.base.https_urls import check_https_url
from vllm_fleet.base.text_form import Form
from vllm_fleet.schema.recipe import Line, Network, Strict

#: The directory of Let's Encrypt (letsencrypt.org/docs/acme-protocol-updates).
LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
#: Where a CA asks for the answer to its challenge (RFC 8555, 8.3): it takes no other port.
CHALLENGE_PORT = 80
#: Of certbot on the loopback address of a gateway, while a certificate is issued.
CERTBOT_PORT = 10243
#: Each gateway has a certificate of its own; Let's Encrypt signs five with the same names in a week, and one is spare.
LETS_ENCRYPT_GATEWAYS = 4
#: Of one certificate at Let's Encrypt (letsencrypt.org/docs/rate-limits).
_MOST_NAMES = 100


def _name(value: str) -> str:
    """A DNS name that HTTP-01 can prove.

    Raises:
        ValueError: it is another text; the message says what to write instead.
    """
    if value.startswith("*."):
        raise ValueError(
            f"{value[:80]!r} is a wildcard, which a CA signs by DNS-01 only: list the names, or give 'certificate_file'"
        )
    name = parse_host_address(value)
    if parse_ip(name):
        raise ValueError(f"{name!r} is an IP address: give the DNS name that clients use")
    return name


def _directory(value: str) -> str:
    check_https_url(value, "it is the URL of the CA's ACME directory", "a CA knows an account by its key")
    return value


def _accepted(value: Any) -> Any:
    if value is not True:
        raise ValueError("must be true: read the terms of the CA, and write 'accept_terms: true' if you accept them")
    return value


_EMAIL = Form(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+", "an e-mail address", "write it such as operations@example.com")


class Acme(Strict):
    """Certificates of a CA by ACME. The gateways answer its challenges (HTTP-01) at port 80."""

    directory: Annotated[str, AfterValidator(_directory)] = Field(
        default=LETS_ENCRYPT, description="URL of the CA's ACME directory. Default: that of Let's Encrypt."
    )
    email: Annotated[str, _EMAIL] = Field(description="E-mail address of the account at the CA.")
    names: list[Annotated[str, AfterValidator(_name)]] = Field(
        min_length=1,
        max_length=_MOST_NAMES,
        description="DNS names in the certificate, by which clients reach the gateways.",
    )
    ca_file: Line | None = Field(
        default=None,
        description="PEM file of the authority that signs the certificate of the directory's server, relative to the "
        "fleet's folder. Default: the trust store of the gateways.",
    )
    challenge_from: list[Network] = Field(
        default=["0.0.0.0/0"],
        description="Networks from which the CA asks for the challenges, in CIDR form: rented gateways open port 80 to "
        "them. Public CAs do not publish their addresses. Default: every IPv4 address.",
    )
    accept_terms: Annotated[bool, BeforeValidator(_accepted)] = Field(
        description="True: you accept the terms of the CA."
    )

    @model_validator(mode="after")
    def _each_name_once(self) -> Acme:
        if len(set(self.names)) < len(self.names):
            raise ValueError("has the same name twice in 'names'")
        return self


class Tls(Strict):
    """TLS at the gateway, with a certificate from a file or from a CA."""

    certificate_file: Line | None = Field(
        default=None, description="PEM file with the certificate chain and the key, relative to the fleet's folder."
    )
    acme: Acme | None = Field(
        default=None, description="The gateways get their certificates from a CA, and renew them themselves."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Tls:
        if (self.certificate_file is None) == (self.acme is None):
            raise ValueError("has its certificate either from 'certificate_file' or from 'acme'")
        return self
