"""The one exception of the project: what is wrong, where, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class FleetError(Exception):
    """A fault that a user can act on.

    Attributes:
        message: what is wrong, one sentence.
        hint: what to do about it, one sentence.
        file: the file that holds the fault, as the user would type it.
        line: the line in that file, counted from 1.
        key: the dotted key in that file.
        host: the host that the fault is about.
        code: a short stable name of the kind of fault (``bad-input``, ``refused``, ``work-failed``).
        others: further faults found in the same pass, so that all are reported at once.
    """

    message: str
    hint: str = ""
    file: str | None = None
    line: int | None = None
    key: str | None = None
    host: str | None = None
    code: str = "bad-input"
    others: list[FleetError] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.message)

    @property
    def where(self) -> str:
        """``file:line: key`` or the host, as far as they are known; empty when neither is."""
        place = self.file or ""
        if place and self.line:
            place = f"{place}:{self.line}"
        return ": ".join(part for part in (place, self.host, self.key) if part)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} ({self.hint})" if self.hint else text

    @property
    def exit_code(self) -> int:
        """2 for bad input and refusals (nothing was touched), 1 for work that failed."""
        return 1 if self.code == "work-failed" else 2

    def record(self) -> dict[str, Any]:
        """The error as the ``--json`` contract spells it."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "file": f"{self.file}:{self.line}" if self.file and self.line else self.file,
            "key": self.key,
            **({"host": self.host} if self.host else {}),
        }
