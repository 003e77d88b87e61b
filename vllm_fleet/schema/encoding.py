"""The strict records of ``recipes/encodings.yml``."""

from __future__ import annotations

from pydantic import Field

from vllm_fleet.base.field_types import Sha256
from vllm_fleet.schema.recipe import Strict


class Encoding(Strict):
    """One vocabulary file of ``recipes/encodings.yml``."""

    sha256: Sha256
    #: Its official page; any other copy with the digest is as good.
    url: str = Field(pattern=r"^https://\S+$")
    source: str


class Encodings(Strict):
    """``recipes/encodings.yml``."""

    encodings: dict[str, Encoding]
