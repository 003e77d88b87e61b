"""The certificate of a gateway, read with the host's openssl. Standard library only. The probe calls it on gateways."""

from __future__ import annotations

import ssl
import subprocess
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_fleet.on_host import manifest_items as items

#: A certificate that ends sooner, or in the last part of a shorter life, ends soon.
SOON_SECONDS = 21 * 86400
SOON_PART = 0.25


def read_certificate(path: str) -> dict[str, Any] | None:
    """The first certificate of a PEM file; None where the file has none.

    Returns:
        ``self_signed``; ``ends``, when it ends as text for people, or empty where that is not soon; ``names``, its DNS
        names in lower case.

    Raises:
        FileNotFoundError: the host has no openssl.
    """
    command = ["openssl", "x509", "-noout", "-in", path, "-nameopt", "RFC2253"]
    command += ["-startdate", "-enddate", "-subject", "-issuer", "-ext", "subjectAltName"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8", errors="replace"
    )
    rows = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    if done.returncode or not {"notBefore", "notAfter", "subject", "issuer"} <= rows.keys():
        return None
    start, end = [ssl.cert_time_to_seconds(rows[key]) for key in ("notBefore", "notAfter")]
    now, ends = time.time(), ""
    if end - now < min(SOON_SECONDS, SOON_PART * (end - start)):
        ends = ("ends at " if end > now else "has ended at ") + time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(end))
    names = {word[4:].lower() for word in done.stdout.replace(",", " ").split() if word.startswith("DNS:")}
    return {"self_signed": rows["subject"] == rows["issuer"], "ends": ends, "names": sorted(names)}


def find_fault(item: items.CertificateItem, differs: Callable[..., tuple[str, str]]) -> tuple[str, str] | None:
    """What is wrong with the first certificate of a file: its end, its names, or that no CA has signed it.

    Args:
        item: what the manifest asks of it.
        differs: makes the answer of a state and the values of its text.
    """
    try:
        found = read_certificate(item["path"])
    except FileNotFoundError:
        return differs("no_tool", "openssl")
    if found is None:
        return differs("wrong_type", "certificate")
    if item["acme"] and found["self_signed"]:
        return differs("self_signed")
    if found["ends"]:
        return differs("not_renewed", found["ends"]) if item["acme"] else differs("renewal_due", found["ends"])
    lacking = [name for name in item["names"] if name not in found["names"]]
    return differs("wrong_names", ", ".join(lacking)) if lacking else None
