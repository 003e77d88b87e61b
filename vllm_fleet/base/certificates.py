"""PEM files that a fleet names: the certificates of an authority, and the certificate and key of a server."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from vllm_fleet.base import paths, text_files
from vllm_fleet.base.errors import FleetError

_CERTIFICATE = re.compile("-----BEGIN (TRUSTED |X509 )?CERTIFICATE-----")
_KEY = re.compile("-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY-----")


def read_authority(path: Path) -> str:
    """The certificates of an authority, PEM.

    Raises:
        FleetError: the file cannot be read, has no certificate or a damaged one, or has a private key.
    """
    import ssl  # not before: most fleets name no certificate

    text, file = text_files.read_text(path), paths.display(path)
    if _KEY.search(text):
        # The text becomes a file on the hosts.
        raise FleetError("has a private key", "give a file with the authority's certificate alone", file)
    if not _CERTIFICATE.search(text):
        raise FleetError("has no certificate in PEM form", "give the certificate of the authority", file)
    # Comments are no part of a certificate, and the hosts' ssl takes ASCII alone.
    plain = text.encode("ascii", "ignore").decode()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=plain)
    except ssl.SSLError:
        raise FleetError("has a damaged certificate", "copy the authority's certificate again", file) from None
    return plain


def check_server(path: Path) -> None:
    """Expects the certificate of a server and its key, as HAProxy reads them from one file.

    Raises:
        FleetError: the file cannot be read, lacks one of them, has a damaged one or a key with a passphrase, they do
            not belong together, or the certificate has ended or not begun.
    """
    import ssl  # not before: most fleets name no certificate

    text, file = text_files.read_bytes(path).decode("utf-8", "replace"), paths.display(path)
    if not _CERTIFICATE.search(text):
        raise FleetError("has no certificate in PEM form", "write the chain of certificates and the key into it", file)
    if not _KEY.search(text):
        raise FleetError("has no private key in PEM form", "append the key of the certificate", file)
    asked: list[bool] = []

    def refuse_passphrase() -> str:
        asked.append(True)
        return ""

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, password=refuse_passphrase)
    except (OSError, ValueError) as fault:
        if asked:
            raise FleetError(
                "has a private key with a passphrase", "HAProxy starts without one: write the key without it", file
            ) from None
        if getattr(fault, "reason", None) == "KEY_VALUES_MISMATCH":
            raise FleetError(
                "has a private key that does not belong to its first certificate",
                "write the server's certificate first, then those that sign it, and the server's key",
                file,
            ) from None
        why = str(getattr(fault, "reason", None) or "PEM").lower().replace("_", " ")
        raise FleetError(
            f"has a certificate or a key that is damaged: {why}", "copy the certificate and the key again", file
        ) from None
    _check_time(text, file)


def _check_time(text: str, file: str) -> None:
    from cryptography import x509  # not before: most fleets name no certificate

    first = x509.load_pem_x509_certificates(text.encode())[0]
    now = datetime.now(UTC)
    if now >= first.not_valid_after_utc:
        raise FleetError(
            f"has a certificate that has ended at {first.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
            "renew it: clients refuse it",
            file,
        )
    if now < first.not_valid_before_utc:
        raise FleetError(
            f"has a certificate that begins at {first.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
            "give one that is valid now, or correct the clock of this machine",
            file,
        )
