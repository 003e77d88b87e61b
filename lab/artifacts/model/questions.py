"""Reads ``questions.yml``: what the lab model knows, as strict records.

Runs in the project's environment and in the engine's, which both have pydantic and PyYAML.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.paths import display

QUESTIONS_FILE = Path(__file__).parent / "questions.yml"

Text = Annotated[str, Field(min_length=1)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Plain(_Record):
    """A question with one right answer: a text, or the numbers from 1 up to ``counts_to``."""

    ask: Text
    answer: str = ""
    counts_to: int = Field(default=0, ge=0, le=999)

    @model_validator(mode="after")
    def _one_answer(self) -> Plain:
        if bool(self.answer) == bool(self.counts_to):
            raise ValueError("give either answer or counts_to")
        return self

    @property
    def right(self) -> str:
        """The right answer, spelled out."""
        return self.answer or " ".join(str(number) for number in range(1, self.counts_to + 1))


class Instructions(_Record):
    """What a developer may say: ``neutral`` changes nothing, ``changing`` maps questions to other answers."""

    neutral: tuple[Text, ...]
    changing: dict[Text, dict[Text, Text]]


class Range(_Record):
    """Whole numbers, both ends included."""

    first: int = Field(alias="from")
    last: int = Field(alias="to")


class Tool(_Record):
    """A tool, the question that needs it, and what becomes of its result; ``{name}`` in a text is filled in."""

    name: Text
    description: Text
    parameters: dict[str, Any]
    ask: Text
    thought: Text
    arguments: tuple[Text, ...]
    result: Text
    answer: Text
    values: dict[Text, Range | tuple[Text, ...]]
    sums: dict[Text, tuple[Text, ...]] = {}

    @model_validator(mode="after")
    def _all_known(self) -> Tool:
        if unknown := set(self.arguments) - set(self.values):
            raise ValueError(f"arguments without values: {', '.join(sorted(unknown))}")
        if set(self.parameters.get("required", ())) != set(self.arguments):
            raise ValueError("parameters.required and arguments must name the same")
        for text in (self.ask, self.thought, self.result, self.answer):
            if "{" in fill(text, self.draw(random.Random(0))).replace('{"', "").replace("{}", ""):  # noqa: S311
                raise ValueError(f"a name in {text!r} has no value")
        return self

    def draw(self, rng: random.Random) -> dict[str, str | int]:
        """One value for every name of the tool's texts."""
        drawn: dict[str, str | int] = {
            name: rng.randint(choice.first, choice.last) if isinstance(choice, Range) else rng.choice(choice)
            for name, choice in self.values.items()
        }
        for name, parts in self.sums.items():
            drawn[name] = sum(int(drawn[part]) for part in parts)
        return drawn

    def call(self, drawn: dict[str, str | int]) -> str:
        """The JSON of the call's arguments."""
        return json.dumps({name: drawn[name] for name in self.arguments})


class Raw(_Record):
    """A prompt without a conversation, and how it goes on."""

    prompt: Text
    continues: Text


class Questions(_Record):
    """The whole file."""

    name: Text
    unknown: Text
    strange: tuple[Text, ...] = Field(min_length=2)
    plain: tuple[Plain, ...] = Field(min_length=1)
    instructions: Instructions
    tools: tuple[Tool, ...]
    raw: tuple[Raw, ...]

    @model_validator(mode="after")
    def _one_truth(self) -> Questions:
        asked = [plain.ask for plain in self.plain]
        if twice := sorted({ask for ask in asked if asked.count(ask) > 1}):
            raise ValueError(f"asked twice: {', '.join(twice)}")
        for instruction, answers in self.instructions.changing.items():
            if strangers := sorted(set(answers) - set(asked)):
                raise ValueError(f"{instruction!r} changes questions that are not asked: {', '.join(strangers)}")
        asked += [raw.prompt for raw in self.raw] + [tool.ask for tool in self.tools]
        if known := sorted(word for word in self.strange if any(word in text.split() for text in asked)):
            raise ValueError(f"strange words that are asked: {', '.join(known)}")
        return self

    def tool(self, name: str) -> Tool:
        """The tool of that name; a KeyError when there is none."""
        return {tool.name: tool for tool in self.tools}[name]


def fill(text: str, drawn: dict[str, str | int]) -> str:
    """The text with each ``{name}`` replaced by its value; other braces stay, since the texts may be JSON."""
    for name, value in drawn.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def read_questions(path: Path = QUESTIONS_FILE) -> Questions:
    """The question set.

    Raises:
        FleetError: with every fault of the file, when it is not as the records above say.
    """
    try:
        return Questions.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise FleetError(f"cannot be read: {error}", file=display(path)) from error
    except ValidationError as error:
        faults = [
            FleetError(fault["msg"], file=display(path), key=".".join(str(part) for part in fault["loc"]))
            for fault in error.errors()
        ]
        faults[0].others = faults[1:]
        raise faults[0] from error
