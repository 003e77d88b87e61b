"""The strict record of ``recipes/drafts``: small models that propose tokens for a larger one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vllm_fleet.schema.recipe import Status, Strict


class Draft(Strict):
    """One file of ``recipes/drafts/<org>``: a small model that proposes tokens for another one."""

    name: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    #: The models that it proposes tokens for.
    draft_of: list[str] = Field(min_length=1)
    method: Literal["eagle3"]
    #: GiB of one whole copy.
    weights_gib: float = Field(gt=0)
    status: Status
    evidence: str = Field(min_length=10)
    source: str = Field(min_length=3)
