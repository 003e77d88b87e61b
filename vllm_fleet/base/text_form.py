"""Text of one form in a record: an error says in words what is wrong, and how it is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True)
class Form:
    """The form of a text, for ``Annotated[str, Form(...)]``.

    Attributes:
        pattern: a regular expression for the whole text, without anchors.
        what: what such a text is, as "the id of a VPC".
        write: how it is written, such as "write it such as vpc-0a1b2c3d4e5f67890".
    """

    pattern: str
    what: str
    write: str

    def check(self, value: str) -> str:
        """The text itself.

        Raises:
            ValueError: it has another form.
        """
        if not re.fullmatch(self.pattern, value):
            shown = value if len(value) <= 80 else f"{value[:80]}..."
            raise ValueError(f"{shown!r} is not {self.what}: {self.write}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The pattern for editors."""
        return {**handler(schema), "pattern": f"^({self.pattern})$" if "|" in self.pattern else f"^{self.pattern}$"}
