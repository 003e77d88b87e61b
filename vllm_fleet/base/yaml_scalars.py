"""Words of YAML without quotes -> values. Numbers that two readers of YAML read differently are errors.

Readers of YAML 1.1 (PyYAML, Ansible) and of YAML 1.2 (editors, Go, JavaScript) disagree about ``0022``, ``22:22``,
``0o17``, ``1_0`` and ``1e3``. The forms are those of https://yaml.org/type/int.html, https://yaml.org/type/float.html
and https://yaml.org/spec/1.2.2/#103-core-schema. Dates are text, as in YAML 1.2.
"""

from __future__ import annotations

import math
import re
from typing import Any

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {
    spelled: value
    for word, value in (("true", True), ("yes", True), ("on", True), ("false", False), ("no", False), ("off", False))
    for spelled in (word, word.capitalize(), word.upper())
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?")
#: A quick look: no other word can be a number.
_FIRST = frozenset("-+.0123456789")
#: Numbers of more digits are no port, size or count; Python itself refuses those of more than 4300.
_MOST_DIGITS = 18
#: Digits of what is no amount of anything: the account of a cloud has twelve.
_ID_DIGITS = 10

_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-9]+)+(\.[0-9_]*)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+(\.[0-9_]*)?")
_OTHER_BASE = re.compile(r"[-+]?(0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+)")
_UNDERSCORE = re.compile(r"[-+]?[0-9]*[0-9_]*\.?[0-9_]*")
_EXPONENT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class AmbiguousNumberError(ValueError):
    """A number in a form that is refused.

    Attributes:
        hint: what to write instead.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def read_plain(word: str) -> Any:
    """The value of a word without quotes: None, a boolean, an integer, a float, or text.

    Raises:
        AmbiguousNumberError: a number in a form that readers of YAML disagree about, or that is too large.
    """
    if word in _NULL:
        return None
    if word in _BOOLEANS:
        return _BOOLEANS[word]
    if word[0] not in _FIRST:
        return word
    if _INTEGER.fullmatch(word):
        if len(word.lstrip("-+")) > _MOST_DIGITS:
            raise AmbiguousNumberError(
                f"is a number of {len(word.lstrip('-+'))} digits; at most {_MOST_DIGITS} are read",
                "correct the number, or quote it if it is text",
            )
        return int(word)
    if _FLOAT.fullmatch(word):
        value = float(word)
        if not math.isfinite(value):
            raise AmbiguousNumberError(f"{word} is too large for a number", "correct the number")
        return value
    _refuse_ambiguous(word)
    return word


def _refuse_ambiguous(word: str) -> None:
    """Raises AmbiguousNumberError for each form of number that is not plain decimal."""
    shown = word if len(word) <= 40 else f"{word[:40]}..."
    if _SEXAGESIMAL.fullmatch(word):
        raise AmbiguousNumberError(
            f"{shown} has a colon: some readers of YAML read it as a number to the base 60",
            "write one decimal number, or quote it if it is text",
        )
    if _LEADING_ZERO.fullmatch(word):
        raise AmbiguousNumberError(
            f"{shown} has a leading zero: some readers of YAML read it as an octal number",
            # So long a number is an id, whose zeros count.
            "quote it, its zeros count"
            if len(word) >= _ID_DIGITS
            else f"write {_without_zeros(word)}, or quote it if it is text",
        )
    if _OTHER_BASE.fullmatch(word):
        raise AmbiguousNumberError(f"{shown} is not a decimal number", _instead(word))
    if "_" in word and any(map(str.isdigit, word)) and _UNDERSCORE.fullmatch(word):
        raise AmbiguousNumberError(
            f"{shown} has an underscore: some readers of YAML read it as a number",
            f"write {word.replace('_', '')[:40]}, or quote it if it is text",
        )
    if _EXPONENT.fullmatch(word):
        raise AmbiguousNumberError(
            f"{shown} has an exponent: some readers of YAML read it as a number, others as text", _instead(word)
        )
    if _NOT_FINITE.fullmatch(word):
        raise AmbiguousNumberError(f"{shown} is not a finite number", "write a number, or quote it if it is text")


def _without_zeros(word: str) -> str:
    sign = word[0] if word[0] in "-+" else ""
    digits = word.lstrip("-+").replace("_", "").lstrip("0") or "0"
    return (sign + ("0" if digits.startswith(".") else "") + digits)[:40]


def _instead(word: str) -> str:
    """What to write in place of a number to another base or with an exponent."""
    plain = word.replace("_", "")
    if len(plain) <= 20:
        decimal = repr(float(plain)) if _EXPONENT.fullmatch(plain) else str(int(plain, 0))
        if _INTEGER.fullmatch(decimal) or re.fullmatch(r"[-+]?[0-9]+\.[0-9]+", decimal):
            return f"write {decimal}, or quote it if it is text"
    return "write it in decimal digits, or quote it if it is text"
