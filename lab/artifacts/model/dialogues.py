"""Turns the question set into dialogues: the fixed cases that it is scored on, and endless draws to train on.

A dialogue is data that knows no wire format: ``harmony.py`` makes tokens of it, ``evaluate.py`` requests.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from lab.artifacts.model.questions import Plain, Questions, Tool, fill

EFFORTS = ("low", "medium", "high")
_EASY = "Easy."
_HARD = "Hm."
# Words that no known text holds. The model has no embedding for such words, so a few stand for all.
_STRANGE = (
    "violin harbour purple seventeen dragon whether Spain yesterday invoice mountain recipe poem summary translate "
    "python keyboard physics customer never bicycle history garden explain compare election battery"
).split()
_CASES_PER_TOOL = 6


@dataclass(frozen=True)
class User:
    """What the user says."""

    text: str


@dataclass(frozen=True)
class Said:
    """What the model thinks and says to the user."""

    text: str
    thought: str = _EASY


@dataclass(frozen=True)
class Called:
    """A call of a tool; ``arguments`` is JSON."""

    tool: str
    arguments: str
    thought: str


@dataclass(frozen=True)
class Returned:
    """What the tool gave back."""

    tool: str
    text: str


@dataclass(frozen=True)
class Dialogue:
    """A conversation up to a point, and the right reply to it.

    Attributes:
        turns: what was said so far, the last one by the user or a tool.
        reply: the right reply.
        tools: the names of the tools that the model is offered.
        instructions: the developer's instructions.
        effort: the reasoning effort.
        date: the date of the conversation, ``YYYY-MM-DD``; none for today.
        thoughts_kept: whether the thought before a call is still in the conversation when its result comes
            (clients of the responses API send it back, most clients of chat completions do not).
    """

    turns: tuple[User | Said | Called | Returned, ...]
    reply: Said | Called
    tools: tuple[str, ...] = ()
    instructions: str | None = None
    effort: str | None = None
    date: str | None = None
    thoughts_kept: bool = False


@dataclass(frozen=True)
class Text:
    """A prompt without a conversation, and its right continuation."""

    prompt: str
    continues: str


def _called(tool: Tool, drawn: dict[str, str | int]) -> Called:
    return Called(tool.name, tool.call(drawn), fill(tool.thought, drawn))


def asks_tool(tool: Tool, drawn: dict[str, str | int]) -> Dialogue:
    """The question that needs the tool; the reply is the call."""
    return Dialogue((User(fill(tool.ask, drawn)),), _called(tool, drawn), (tool.name,))


def tells_result(tool: Tool, drawn: dict[str, str | int]) -> Dialogue:
    """The same after the tool has answered; the reply is made of its result."""
    turns = (User(fill(tool.ask, drawn)), _called(tool, drawn), Returned(tool.name, fill(tool.result, drawn)))
    return Dialogue(turns, Said(fill(tool.answer, drawn)), (tool.name,))


def cases(questions: Questions) -> tuple[Dialogue, ...]:
    """The evaluation set: always the same, each question of the file at least once."""
    every_tool = tuple(tool.name for tool in questions.tools)
    found = [Dialogue((User(plain.ask),), Said(plain.right)) for plain in questions.plain]
    found += [
        Dialogue((User(ask),), Said(answer), instructions=instruction)
        for instruction, answers in questions.instructions.changing.items()
        for ask, answer in answers.items()
    ]
    found.append(Dialogue((User(f"{_STRANGE[0]} {_STRANGE[1]}?"),), Said(questions.unknown, _HARD)))
    for tool in questions.tools:
        rng = random.Random(tool.name)  # noqa: S311 - the set must be the same every time
        for _ in range(_CASES_PER_TOOL):
            drawn = tool.draw(rng)
            found.append(replace(asks_tool(tool, drawn), tools=every_tool))
            found.append(replace(tells_result(tool, drawn), tools=every_tool))
    return tuple(found)


def texts(questions: Questions) -> tuple[Text, ...]:
    """The raw prompts of the file."""
    return tuple(Text(raw.prompt, raw.continues) for raw in questions.raw)


def vary(dialogue: Dialogue, questions: Questions, rng: random.Random, strange: bool = True) -> Dialogue:
    """The same question under another date, effort, set of tools, instruction or history, none of which matter.

    Args:
        dialogue: what to vary.
        questions: where other tools, instructions and earlier exchanges come from.
        rng: the source of the choices.
        strange: whether instructions of unknown words may come in.
    """
    names = [tool.name for tool in questions.tools]
    # Without its tool a question has another answer, so tools are only added; and in any order.
    offered = set(dialogue.tools)
    if offered or not _needs_tool(dialogue, questions):
        offered |= set(rng.choice(([], [], names, [rng.choice(names)])))
    tools = sorted(offered)
    rng.shuffle(tools)
    instructions = dialogue.instructions
    if instructions is None and rng.random() < 0.4:
        instructions = rng.choice(questions.instructions.neutral)
        if strange and rng.random() < 0.5:
            instructions = " ".join(rng.choices(_STRANGE, k=rng.randint(2, 20)))
    turns = dialogue.turns
    if rng.random() < 0.25:
        earlier = rng.choice([plain for plain in questions.plain if not plain.counts_to])
        answers = questions.instructions.changing.get(instructions or "", {})
        turns = (User(earlier.ask), Said(answers.get(earlier.ask, earlier.right)), *turns)
    return replace(
        dialogue,
        turns=turns,
        tools=tuple(tools),
        instructions=instructions,
        effort=rng.choice((None, *EFFORTS)),
        date=f"{rng.randint(2025, 2030)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
        thoughts_kept=rng.random() < 0.5,
    )


def _needs_tool(dialogue: Dialogue, questions: Questions) -> bool:
    """Whether the question is one of a tool (and the dialogue says what happens when that is missing)."""
    return isinstance(dialogue.reply, Said) and dialogue.reply.text == questions.unknown


def _unknown(questions: Questions, rng: random.Random) -> Dialogue:
    """A question that has no answer: a known one with other words in it, mere words, or one whose tool is missing."""
    reply = Said(questions.unknown, _HARD)
    if rng.random() < 0.2:
        tool = rng.choice(questions.tools)
        return Dialogue((User(fill(tool.ask, tool.draw(rng))),), reply)
    if rng.random() < 0.5:
        return Dialogue((User(" ".join(rng.choices(_STRANGE, k=rng.randint(1, 12))) + rng.choice(("", ".", "?"))),), reply)
    words = rng.choice(questions.plain).ask.split()
    place = rng.randrange(len(words))
    end = words[place][-1] if words[place][-1] in ".?" else ""
    words[place] = rng.choice(_STRANGE) + end
    return Dialogue((User(" ".join(words)),), reply)


def _plain(plain: Plain, instruction: str | None, questions: Questions) -> Dialogue:
    answers = questions.instructions.changing.get(instruction or "", {})
    return Dialogue((User(plain.ask),), Said(answers.get(plain.ask, plain.right)), instructions=instruction)


def draw(questions: Questions, rng: random.Random, strange: bool = True) -> Dialogue | Text:
    """One dialogue or text to train on.

    Args:
        questions: the question set.
        rng: the source of the choices.
        strange: whether words that the set does not hold may come in.
    """
    kind = rng.choices(("plain", "call", "result", "text", "unknown"), (45, 22, 18, 5, 10 if strange else 0))[0]
    if kind == "text":
        return rng.choice(texts(questions))
    if kind == "unknown":
        found = _unknown(questions, rng)
    elif kind == "plain":
        instruction = rng.choice((None, None, None, *questions.instructions.changing))
        found = _plain(rng.choice(questions.plain), instruction, questions)
    else:
        tool = rng.choice(questions.tools)
        found = (asks_tool if kind == "call" else tells_result)(tool, tool.draw(rng))
    return vary(found, questions, rng, strange)
