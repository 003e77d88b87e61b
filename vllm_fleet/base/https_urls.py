"""URLs of HTTPS in a fleet.yml: whole ones, without an account and without a query."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def check_https_url(value: str, meaning: str, account: str) -> None:
    """Refuses what is no such URL.

    Args:
        value: the text.
        meaning: why it must be HTTPS, or what it is, for people.
        account: why it has no account and no query, for people.

    Raises:
        ValueError: it is another text; the message says what is wrong, and does not repeat it.
    """
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018 - urlsplit checks it when it is read
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme != "https" or not parts.hostname or not re.fullmatch(r"[!-~]+", value):
        raise ValueError(f"must begin with https:// and have no blanks: {meaning}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"must not contain an account or a query: {account}")
