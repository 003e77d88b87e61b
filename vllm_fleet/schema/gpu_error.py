"""The strict record of ``recipes/gpu_errors.yml``: what NVIDIA's driver logs, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from vllm_fleet.schema.recipe import Strict

#: From the mildest to the gravest.
Action = Literal["ignore", "restart_app", "reset_gpu", "reboot", "contact"]
LoggedAction = Literal["ignore", "restart_app", "reset_gpu", "reboot", "contact", "by_severity", "by_text"]


class CataloguedError(Strict):
    """One code of the driver's catalogue."""

    code: int = Field(ge=1, le=99999)
    name: str = Field(min_length=3, max_length=80)
    #: ``by_severity`` and ``by_text``: the line in the log decides.
    action: LoggedAction


class RecoveryAction(Strict):
    """What the driver asks for, in its own words."""

    text: str = Field(min_length=3)
    action: Action


class GpuErrors(Strict):
    """``recipes/gpu_errors.yml``."""

    #: Of the last comparison with the source.
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    source: str = Field(min_length=10)
    xids: list[CataloguedError] = Field(min_length=1)
    sxids: list[CataloguedError] = Field(min_length=1)
    recovery_actions: list[RecoveryAction] = Field(min_length=1)

    @model_validator(mode="after")
    def _lists_each_once(self) -> GpuErrors:
        lists: dict[str, Sequence[object]] = {
            "xids": [entry.code for entry in self.xids],
            "sxids": [entry.code for entry in self.sxids],
            "recovery_actions": [entry.text for entry in self.recovery_actions],
        }
        for name, keys in lists.items():
            twice = [key for at, key in enumerate(keys) if key in keys[:at]]
            if twice:
                raise ValueError(f"{name} lists {twice[0]} twice")
        return self
