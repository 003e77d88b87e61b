"""Certificates with their keys as PEM, signed by themselves, with any beginning and end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from vllm_fleet.base.addresses import parse_ip


def _general_name(name: str) -> x509.GeneralName:
    address = parse_ip(name)
    return x509.IPAddress(address) if address else x509.DNSName(name)


def certificate_text(
    days: tuple[float, float] = (-1, 89), names: tuple[str, ...] = ("api.example.com",), issuer: str = "itself"
) -> str:
    """A certificate and its key.

    Args:
        days: its beginning and its end, in days from now.
        names: its DNS names and IP addresses.
        issuer: the name of who signs it; the signature is always its own.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "itself")])
    start, end = (datetime.now(UTC) + timedelta(days=each) for each in days)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM).decode() + private.decode()
