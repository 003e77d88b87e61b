"""Where each value of a deployment comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue.spellings import Spelled


@dataclass(frozen=True)
class Origin:
    """Where a value comes from. ``rule`` counts from 1; it is None for an override and for arithmetic."""

    file: str
    rule: int | None
    why: str
    source: str
    #: The entry of the spelling map that gave the value another name than its rule or override uses.
    spelling: Spelled | None = None

    @property
    def place(self) -> str:
        """The file, and the rule in it where there is one."""
        return f"{self.file}, rule {self.rule}" if self.rule else self.file

    def record(self) -> dict[str, Any]:
        """The provenance entry of the JSON contract."""
        record = {"file": self.file, "rule": self.rule, "why": self.why, "source": self.source}
        return {**record, "spelling": self.spelling.record()} if self.spelling else record


def error_at(
    provenance: Mapping[str, Origin], key: str, message: str, hint: str, code: ErrorCode = ErrorCode.BAD_INPUT
) -> FleetError:
    """An error about a value, with the place that sets it.

    Args:
        provenance: the origin of each value.
        key: of the value, or of a mapping that has it; ``args.`` or ``env.`` with its name.
        message: what is wrong.
        hint: what to do.
        code: the kind of error.
    """
    origin = next(origin for name, origin in provenance.items() if name == key or name.startswith(f"{key}."))
    return FleetError(message, hint, origin.place, key=key, code=code)
