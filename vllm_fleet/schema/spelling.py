"""The strict record of ``recipes/spellings.yml``: names that a guide uses and a release reads under another name."""

from __future__ import annotations

from pydantic import Field, model_validator

from vllm_fleet.schema.recipe import Accelerator, Strict

#: ``args.`` with a flag and the keys below it, or ``env.`` with a variable.
_NAME = r"^(args(\.[A-Za-z0-9_-]+)+|env\.[A-Z][A-Z0-9_]*)$"


class Spelling(Strict):
    """One name of a guide and what it is in a range of releases."""

    name: str = Field(pattern=_NAME)
    #: The name that the releases read; None: it has none, so the value is left out.
    to: str | None = Field(pattern=_NAME)
    engine: str = Field(description="release range, such as '>=0.12,<0.32'")
    accelerator: Accelerator | None = None
    why: str = Field(min_length=10)
    source: str = Field(min_length=3)

    @model_validator(mode="after")
    def _is_another(self) -> Spelling:
        if self.name == self.to:
            raise ValueError("a name cannot be another spelling of itself")
        return self


class Spellings(Strict):
    """``recipes/spellings.yml``."""

    spellings: list[Spelling] = Field(min_length=1)
