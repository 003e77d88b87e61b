"""Text and JSON from hosts and services -> strict records without control characters, or the reason why not.

Whoever writes the text may be hostile. It must not end the program, fill the memory, move the cursor of a terminal, or
add a line to a log or a YAML file.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError

#: Characters of one text in a message.
SHOWN = 1000
_LIMIT = 1 << 16
#: Type of a fault of the parser -> its text.
_PLAIN = {
    "enum": "unknown value",
    "extra_forbidden": "unknown key",
    "literal_error": "unknown value",
    "missing": "is missing",
    "model_type": "is not a JSON object",
}


class UnreadableError(ValueError):
    """An answer that is not the expected record; the message says why, without control characters."""


def clean_text(text: str, limit: int = SHOWN) -> str:
    """A text in one line that a terminal only prints: every other character becomes its escape, as Python writes it.

    Args:
        text: the text of a stranger.
        limit: the most characters of the result.
    """
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(
            letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in shown
        )
    return shown if len(text) <= limit and len(shown) <= limit else f"{shown[: limit - 1]}…"


def clean_bytes(output: bytes, limit: int = SHOWN) -> str:
    """The last line of a program's output that has text, as :func:`clean_text` returns it; empty if none has.

    Args:
        output: the output of a program that a stranger controls.
        limit: the most characters of the result.
    """
    lines = [line for line in output.splitlines() if line.strip()]
    return clean_text(lines[-1].decode("utf-8", "backslashreplace").strip(), limit) if lines else ""


#: Text of a host or a service, for people.
CleanText = Annotated[str, StringConstraints(max_length=_LIMIT), AfterValidator(clean_text)]


class Foreign(BaseModel):
    """A record from outside of which every key is known: nothing is coerced, no number is infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)


class ForeignPart(Foreign):
    """A record from outside of which only some keys are read, as in a format that others extend."""

    model_config = ConfigDict(extra="ignore")


Record = TypeVar("Record", bound=Foreign)


def parse_record(record: type[Record], body: str | bytes) -> Record:
    """Reads a JSON object of a stranger. The parser limits the depth and the digits of a number.

    Args:
        record: its type.
        body: the text; its reader has limited its size.

    Raises:
        UnreadableError: it is not JSON, or not such a record.
    """
    try:
        return record.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        message = _PLAIN.get(first["type"]) or str(first["msg"]).removeprefix("Value error, ")
        place = ".".join(map(str, first["loc"]))
        raise UnreadableError(clean_text(f"{place}: {message}" if place else message)) from None
