"""Dotted version numbers."""

from __future__ import annotations

import re


def version_key(version: str) -> tuple[int, ...]:
    """A version as numbers that compare: ``580.159.03`` is above ``570``."""
    return tuple(int(number) for number in re.findall(r"\d+", version))
