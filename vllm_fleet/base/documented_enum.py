"""An enumeration of texts in which each member carries what it means."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class DocumentedEnum(StrEnum):
    """Members are written as ``NAME = "value", "what it means"``; the meaning is the docstring of the member.

    A member is its value: it compares, prints and turns into JSON as that text.
    """

    def __new__(cls, value: str, meaning: str = "") -> Self:
        """A member with its docstring.

        Args:
            value: the text that the member is.
            meaning: what it means.
        """
        member = str.__new__(cls, value)
        member._value_ = value
        member.__doc__ = meaning
        return member

    @property
    def meaning(self) -> str:
        """What the member means, one sentence without a full stop."""
        return self.__doc__ or ""
