"""The strict record of ``recipes/known_issues.yml``: what is known to go wrong, and what Harmony supports."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from vllm_fleet.schema.recipe import Name, Strict, When

#: An issue has a cause that can be removed; a limitation has no fix in those releases.
Kind = Literal["issue", "limitation"]
Api = Literal["responses", "responses-background", "responses-streaming", "chat", "chat-streaming"]
Capability = Literal["text", "structured-output", "builtin-tools-demo", "builtin-tools-mcp", "function-calling"]


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as fault:
        raise ValueError(f"{value!r} is not a regular expression: {fault}") from None
    return value


class KnownIssue(Strict):
    """One thing that goes wrong: how it shows, why, what to do, and on which deployments."""

    id: Name
    kind: Kind = "issue"
    #: Searched for in a line of the log, in an answer or in an installer's output; None: it shows in no text.
    symptom: Annotated[str, AfterValidator(_expression)] | None = Field(default=None, min_length=3)
    #: True where a part of the symptom is put together from descriptions; False where a source quotes all of it.
    symptom_inferred: bool = False
    cause: str = Field(min_length=10)
    fix: str = Field(min_length=10)
    #: The same selectors as those of a rule; what is left out holds everywhere.
    when: When = When()
    source: str = Field(min_length=3)

    @model_validator(mode="after")
    def _concerns_a_deployment(self) -> KnownIssue:
        if self.when.fact:
            raise ValueError("an issue cannot select by the facts of a host; use a rule")
        return self

    @model_validator(mode="after")
    def _infers_what_is_there(self) -> KnownIssue:
        if self.symptom_inferred and self.symptom is None:
            raise ValueError("symptom_inferred needs a symptom")
        return self


class Harmony(Strict):
    """What each endpoint does with the Harmony format."""

    engine: str
    apis: dict[Api, dict[Capability, bool]]
    notes: list[str] = []
    source: str = Field(min_length=3)

    @model_validator(mode="after")
    def _is_complete(self) -> Harmony:
        missing = [name for name in get_args(Api) if name not in self.apis]
        for api, answers in self.apis.items():
            missing += [f"{api}.{name}" for name in get_args(Capability) if name not in answers]
        if missing:
            raise ValueError(f"the matrix lacks {', '.join(missing)}")
        return self


class KnownIssues(Strict):
    """``recipes/known_issues.yml``."""

    issues: list[KnownIssue] = Field(min_length=1)
    harmony: Harmony
