"""The strict records of lists of a model's files: ``models.lock.json`` of a fleet, and ``model.json`` of a folder."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vllm_fleet.base.field_types import Day, Line, ModelFileName, Sha256
from vllm_fleet.base.foreign_text import ForeignPart
from vllm_fleet.schema.recipe import Strict

#: Bytes of a file; no disk has more.
Size = Annotated[int, Field(ge=0, lt=1 << 50)]


class LockedFile(Strict):
    """One file of a model at its revision."""

    bytes: Size
    sha256: Sha256


class LockedModel(Strict):
    """A model at one commit of the hub, as the hub described it on a day."""

    revision: str = Field(pattern="^[0-9a-f]{40}$")
    as_of: Day
    files: dict[ModelFileName, LockedFile] = Field(min_length=1)


class ModelLock(Strict):
    """``models.lock.json``, version 1: the digests that 'vllm-fleet lock' has asked the hub for."""

    version: Annotated[int, Field(ge=1, le=1)]
    models: dict[Line, LockedModel]


class ListedFile(ForeignPart):
    """One file of a list. Its digest is checked by the reader, which names the file."""

    sha256: str
    size: Size | None = None


class ModelList(ForeignPart):
    """``model.json``: the lab, the mirror and people write it, with further keys of their own."""

    revision: str
    files: dict[str, ListedFile] = Field(min_length=1)
