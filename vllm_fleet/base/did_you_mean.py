"""The names that a user may have meant who wrote one that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: At most so many names are proposed.
_MOST = 3
_ALIKE = 0.75


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The names that are most like one that is not there; the nearest first.

    Args:
        name: what was written.
        known: the names that are there.
    """
    plain = {_plain(other): other for other in known}
    wanted = _plain(name)
    if wanted in plain:
        return [plain[wanted]]
    # A part of a name is often written for the whole: 0.12.0, gpt-oss-20b.
    if within := sorted(other for text, other in plain.items() if len(wanted) > 2 and wanted in text):
        return within[:_MOST]
    if longest := max((text for text in plain if len(text) > 4 and text in wanted), key=len, default=""):
        return [plain[longest]]
    return [plain[text] for text in difflib.get_close_matches(wanted, plain, _MOST, _ALIKE)]


def hint(name: str, known: Iterable[str], otherwise: str) -> str:
    """What to do about a name that is not there.

    Args:
        name: what was written.
        known: the names that are there.
        otherwise: the hint where none of them is like it.
    """
    found = nearest(name, list(known))
    return f"did you mean {' or '.join(found)}?" if found else otherwise


def _plain(name: str) -> str:
    return name.casefold().replace("_", "-").strip()
