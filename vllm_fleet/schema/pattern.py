"""Regular expressions in files of the catalogue."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field


def _is_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as fault:
        raise ValueError(f"is no regular expression: {fault}") from None
    return text


Pattern = Annotated[str, Field(min_length=1), AfterValidator(_is_pattern)]
#: One that does not fit many lines of a log.
LongPattern = Annotated[Pattern, Field(min_length=8)]
