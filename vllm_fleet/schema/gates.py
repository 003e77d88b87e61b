"""The strict record of ``recipes/gates.yml``: what a started release must pass before its host gets traffic."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from vllm_fleet.schema.pattern import Pattern
from vllm_fleet.schema.recipe import Strict

GateName = Literal["completion", "stream", "tools", "vocabulary", "log", "numerics", "speed", "questions"]
#: The gates in their order.
GATES: tuple[GateName, ...] = get_args(GateName)
_Share = Annotated[float, Field(gt=0, le=1)]


class Text(Strict):
    """A text and its tokens."""

    prompt: str = Field(min_length=1)
    tokens: list[int] = Field(min_length=1)


class Vocabulary(Strict):
    """Texts by which another vocabulary is told."""

    source: str = Field(min_length=3)
    texts: list[Text] = Field(min_length=1)


class Distance(Strict):
    """How far log-probabilities may differ, in nats."""

    mean: float = Field(gt=0)
    median: float = Field(gt=0)


class Numerics(Strict):
    """Prompts, and how far the log-probabilities of their tokens may differ from those of another release."""

    prompts: list[str] = Field(min_length=1)
    same: Distance
    other: Distance
    source: str = Field(min_length=3)


class Budget(Strict):
    """By which share a release may be slower than the one before."""

    ttft: _Share
    tokens_per_second: _Share


class Speed(Strict):
    """The load, how far its rounds may lie apart, and what a release may lose."""

    streams: int = Field(gt=0, le=64)
    prompt_tokens: int = Field(ge=4)
    tokens: int = Field(gt=1)
    rounds: int = Field(gt=1)
    noise: _Share
    budget: Budget
    least_ttft_seconds: float = Field(gt=0)


class Call(Strict):
    """The call of a function: its name, and a regular expression for each argument."""

    name: str = Field(min_length=1)
    arguments: dict[str, Pattern]


class Question(Strict):
    """A question, and the answer as a regular expression or the call that it must end in."""

    ask: str = Field(min_length=1)
    answer: Pattern | None = None
    tools: list[dict[str, Any]] = []
    call: Call | None = None

    @model_validator(mode="after")
    def _has_one_end(self) -> Question:
        if (self.answer is None) == (self.call is None):
            raise ValueError("a question has either 'answer' or 'call'")
        if self.call and self.call.name not in [tool.get("name") for tool in self.tools]:
            raise ValueError(f"'call' names {self.call.name}, which is not among its 'tools'")
        return self


class OwnGates(Strict):
    """What a model is asked in place of the common prompts and questions."""

    prompts: list[str] = Field(min_length=1)
    questions: list[Question] = Field(min_length=1)


class Gates(Strict):
    """``recipes/gates.yml``."""

    vocabulary: Vocabulary
    numerics: Numerics
    speed: Speed
    share: _Share
    questions: list[Question] = Field(min_length=1)
    models: dict[str, OwnGates] = {}

    @model_validator(mode="after")
    def _asks_for_calls(self) -> Gates:
        own = {name: model.questions for name, model in self.models.items()}
        for name, questions in {"questions": self.questions, **own}.items():
            if not any(question.call for question in questions):
                raise ValueError(f"no question of {name} has a 'call'")
        return self
