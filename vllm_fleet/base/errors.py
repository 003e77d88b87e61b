"""The error that a user can act on, its codes, and the error of the program itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vllm_fleet.base.documented_enum import DocumentedEnum

#: User and password in a URL.
_ACCOUNT = re.compile(r"(?<=://)[^/\s]+@")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class ErrorCode(DocumentedEnum):
    """What kind of error it is; the exit code follows from it."""

    BAD_INPUT = "bad-input", "a file or an argument is wrong; nothing was touched"
    REFUSED = "refused", "the input is valid, but the request is not supported or not safe; nothing was touched"
    WORK_FAILED = "work-failed", "the work started and failed"
    INTERRUPTED = "interrupted", "Ctrl-C or a signal ended the command; what it had begun may be half done"


class InvariantError(Exception):
    """A bug: the program breaks one of its own rules, for any input.

    Nothing catches it; it ends the program with a traceback and exit code 1.
    """


@dataclass
class FleetError(Exception):
    """An error that a user can act on.

    Attributes:
        message: what is wrong, one sentence.
        hint: what to do about it, one sentence.
        file: the file that is wrong, as the user would type it.
        line: the line in that file, counted from 1.
        key: the dotted key in that file.
        host: the host that the error is about.
        code: what kind of error it is.
        others: further errors of the same pass, so that all are reported at once.
        column: the column in that line, counted from 1, where the line alone does not show the place.
    """

    message: str
    hint: str = ""
    file: str | None = None
    line: int | None = None
    key: str | None = None
    host: str | None = None
    code: ErrorCode = ErrorCode.BAD_INPUT
    others: list[FleetError] = field(default_factory=list)
    column: int | None = None

    def __post_init__(self) -> None:
        # The text may repeat a setting of a user, such as the URL of an index or a proxy.
        self.message, self.hint = (_ACCOUNT.sub("…@", text) for text in (self.message, self.hint))
        super().__init__(self.message)
        self.code = ErrorCode(self.code)

    @property
    def where(self) -> str:
        """``file:line:column: key`` or the host, as far as they are known; empty if neither is."""
        place = self.file or ""
        if place and self.line:
            place = f"{place}:{self.line}:{self.column}" if self.column else f"{place}:{self.line}"
        return ": ".join(part for part in (place, self.host, self.key) if part)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        # What a terminal would obey, and line breaks but a newline, come from strangers' text.
        return _CONTROL.sub(lambda found: repr(found[0])[1:-1], f"{text} ({self.hint})" if self.hint else text)

    @property
    def exit_code(self) -> int:
        """2 for bad input and refusals (nothing was touched), 1 for work that failed, 130 for Ctrl-C, as in shells."""
        return {ErrorCode.WORK_FAILED: 1, ErrorCode.INTERRUPTED: 130}.get(self.code, 2)

    def record(self) -> dict[str, Any]:
        """The error in the output of ``--json``."""
        return {
            "code": self.code.value,
            "message": self.message,
            "hint": self.hint,
            "file": f"{self.file}:{self.line}" if self.file and self.line else self.file,
            **({"column": self.column} if self.column else {}),
            "key": self.key,
            **({"host": self.host} if self.host else {}),
        }


def interruption(why: str = "interrupted") -> FleetError:
    """The error of a command that Ctrl-C or a signal has ended."""
    return FleetError(why, "run the command again", code=ErrorCode.INTERRUPTED)


class UnusableFileError(FleetError):
    """A file or folder that the input names cannot be used, so nothing in it could be checked.

    A file that is missing may be on another machine and is another error; this one is wrong on this machine.
    """


#: So many errors are printed; the others are counted.
MOST_PRINTED = 50


def list_errors(error: FleetError) -> tuple[list[FleetError], int]:
    """An error and those found with it, as they are printed.

    Returns:
        The first :data:`MOST_PRINTED` of them, and the number of the others.
    """
    errors = [error, *error.others]
    return errors[:MOST_PRINTED], len(errors[MOST_PRINTED:])


def raise_all(errors: Iterable[FleetError]) -> None:
    """Raises the first error with all others in it, each of them once. Does nothing without errors."""
    by_text = {str(part): part for error in reversed(list(errors)) for part in (*reversed(error.others), error)}
    flat = list(reversed(by_text.values()))
    for error in flat:
        error.others = []
    if flat:
        flat[0].others = flat[1:]
        raise flat[0]
