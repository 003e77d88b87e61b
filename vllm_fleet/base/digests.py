"""Digests of text."""

from __future__ import annotations

import hashlib


def text_sha256(text: str) -> str:
    """The SHA-256 of a text as a UTF-8 file holds it, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()
