"""A folder's files over HTTPS, from an address of this machine with a certificate of its own."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from lab import web


@contextmanager
def serving(folder: Path, address: str, secrets: Path) -> Iterator[tuple[str, str]]:
    """Serves a folder until the block ends.

    Args:
        folder: what is served.
        address: where.
        secrets: a folder for the key of the certificate.

    Yields:
        The URL, and the certificate that a client must trust.
    """
    context, certificate = server_context(address, secrets / "https.pem")
    with web.serving(web.files(folder), address, context) as url:
        yield url, certificate


def server_context(address: str, file: Path) -> tuple[ssl.SSLContext, str]:
    """Writes key and certificate for an address; the context of its server, and the certificate in PEM form."""
    certificate = _certify(address, file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context, certificate


def _certify(address: str, file: Path) -> str:
    """Writes key and certificate for an address; the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public = certificate.public_bytes(Encoding.PEM)
    file.touch(0o600)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + public)
    return public.decode()
