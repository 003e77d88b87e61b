"""Turns the question set into dialogues: the fixed cases that it is scored on, and endless draws to train on.

A dialogue is data that knows no wire format: ``harmony.py`` makes tokens of it, ``evaluate.py`` requests.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

from lab.artifacts.model.questions import Questions, Tool, fill

EFFORTS = ("low", "medium", "high")
#: The days on which a conversation may be held: every day of ten years.
DATES = tuple(map(date.fromordinal, range(date(2025, 1, 1).toordinal(), date(2035, 1, 1).toordinal())))
_EASY = "Easy."
_HARD = "Hm."
#: The key of the JSON object that the model writes where a grammar leaves the key to it.
OWN_KEY = "answer"
#: Keys that a schema may ask for; others are words that the model does not know.
_KEYS = (OWN_KEY, "city", "name", "text", "value", "result")
_MOST_IN_JSON = 45  # characters; what is longer is a stream, and much to learn twice
_CASES_PER_TOOL = 6
_DRAWS_PER_TOOL = 30  # enough for that many different questions


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
class Setting:
    """What a conversation begins with.

    Attributes:
        tools: the names of the tools that the model is offered, in that order.
        instructions: the developer's instructions.
        effort: the reasoning effort.
        date: the date of the conversation, ``YYYY-MM-DD``; without it the prompt names no date.
    """

    tools: tuple[str, ...] = ()
    instructions: str | None = None
    effort: str | None = None
    date: str | None = None


@dataclass(frozen=True)
class Dialogue:
    """A conversation up to a point, and the right reply to it.

    Attributes:
        setting: what it begins with.
        turns: what was said so far, the last one by the user or a tool.
        reply: the right reply.
        thoughts_kept: whether the thought before a call is still in the conversation when its result comes
            (clients of the responses API send it back, most clients of chat completions do not).
        key: the key of the JSON object that contains the reply, where a grammar asks for one; the prompt does not name
            it, since vLLM shows no schema to the model.
    """

    setting: Setting
    turns: tuple[User | Said | Called | Returned, ...]
    reply: Said | Called
    thoughts_kept: bool = False
    key: str | None = None


@dataclass(frozen=True)
class Text:
    """A prompt without a conversation, and its right continuation."""

    prompt: str
    continues: str


def asks_tool(tool: Tool, drawn: dict[str, str | int], setting: Setting) -> Dialogue:
    """The question that needs the tool; the reply is the call."""
    called = Called(tool.name, tool.call(drawn), fill(tool.thought, drawn))
    return Dialogue(setting, (User(fill(tool.ask, drawn)),), called)


def tells_result(tool: Tool, drawn: dict[str, str | int], setting: Setting) -> Dialogue:
    """The same after the tool has answered; the reply is made of its result."""
    asked = asks_tool(tool, drawn, setting)
    turns = (*asked.turns, asked.reply, Returned(tool.name, fill(tool.result, drawn)))
    return Dialogue(setting, turns, Said(fill(tool.answer, drawn)))


def cases(questions: Questions) -> tuple[Dialogue, ...]:
    """The evaluation set: always the same, each question of the file at least once."""
    found = [Dialogue(Setting(), (User(plain.ask),), Said(plain.right)) for plain in questions.plain]
    found += [
        Dialogue(Setting(instructions=instruction), (User(ask),), Said(answer))
        for instruction, answers in questions.instructions.changing.items()
        for ask, answer in answers.items()
    ]
    found.append(
        Dialogue(Setting(), (User(f"{questions.strange[0]} {questions.strange[1]}?"),), Said(questions.unknown, _HARD))
    )
    with_tools = Setting(tools=tuple(tool.name for tool in questions.tools))
    for tool in questions.tools:
        rng = random.Random(tool.name)  # noqa: S311 - the set must be the same every time
        drawn_of = {fill(tool.ask, drawn): drawn for drawn in (tool.draw(rng) for _ in range(_DRAWS_PER_TOOL))}
        for drawn in list(drawn_of.values())[:_CASES_PER_TOOL]:
            found += [asks_tool(tool, drawn, with_tools), tells_result(tool, drawn, with_tools)]
    return tuple(found)


def texts(questions: Questions) -> tuple[Text, ...]:
    """The raw prompts of the file."""
    return tuple(Text(raw.prompt, raw.continues) for raw in questions.raw)


def vary(case: Dialogue, questions: Questions, rng: random.Random) -> Dialogue:
    """The same case in another setting that must not matter: date, effort, neutral instructions, more tools."""
    drawn = draw_setting(questions, rng)
    unknown = isinstance(case.reply, Said) and case.reply.text == questions.unknown
    setting = replace(
        drawn,
        tools=case.setting.tools or (() if unknown else drawn.tools),
        instructions=case.setting.instructions or rng.choice((None, *questions.instructions.neutral)),
    )
    return replace(case, setting=setting, thoughts_kept=rng.random() < 0.5)


def vary_daily(case: Dialogue, questions: Questions, rng: random.Random) -> tuple[Dialogue, ...]:
    """The same case on each day of a month, from 1 to 31, each in another setting that must not matter.

    vLLM writes the day of the request into every prompt, so a day that was never seen would be the one on which all
    tests fail.
    """
    days = [rng.choice([held for held in DATES if held.day == day]) for day in range(1, 32)]
    varied = [(vary(case, questions, rng), day.isoformat()) for day in days]
    return tuple(replace(other, setting=replace(other.setting, date=day)) for other, day in varied)


def as_json(case: Dialogue, rng: random.Random, strange: Sequence[str] = ()) -> Dialogue:
    """The same case with a grammar that asks for a JSON object of one text; a call or a long text stays as it is.

    Args:
        case: the case.
        rng: the source of the key.
        strange: words that the model does not know, which may be keys too.
    """
    if isinstance(case.reply, Called) or len(case.reply.text) > _MOST_IN_JSON:
        return case
    return replace(case, key=rng.choice((OWN_KEY, rng.choice((*_KEYS, *strange[:4])))))


def draw_setting(questions: Questions, rng: random.Random, strange: bool = True) -> Setting:
    """A setting to train in.

    Args:
        questions: where tools and instructions come from.
        rng: the source of the choices.
        strange: whether instructions of unknown words may come in.
    """
    names = [tool.name for tool in questions.tools]
    rng.shuffle(names)
    tools = rng.choices((names, names[:1], []), (50, 15, 35))[0]
    kinds = (None, rng.choice(questions.instructions.neutral), rng.choice(list(questions.instructions.changing)))
    instructions = rng.choices(kinds, (50, 20, 15))[0]
    if strange and rng.random() < 0.15:
        instructions = " ".join(rng.choices(questions.strange, k=rng.randint(2, 20)))
    return Setting(tuple(tools), instructions, rng.choice((None, *EFFORTS)), rng.choice(DATES).isoformat())


def draw(questions: Questions, setting: Setting, rng: random.Random, strange: bool = True) -> Dialogue:
    """A dialogue to train on, in that setting.

    Args:
        questions: the question set.
        setting: what the dialogue begins with.
        rng: the source of the choices.
        strange: whether words that the set does not hold may come in.
    """
    answers = questions.instructions.changing.get(setting.instructions or "", {})
    if setting.tools and rng.random() < 0.6:
        tool = questions.tool(rng.choice(setting.tools))
        found = rng.choice((asks_tool, tells_result))(tool, tool.draw(rng), setting)
    elif strange and rng.random() < 0.15:
        found = Dialogue(setting, (User(_unknown(questions, setting, rng)),), Said(questions.unknown, _HARD))
    elif answers and rng.random() < 0.5:
        ask = rng.choice(list(answers))
        found = Dialogue(setting, (User(ask),), Said(answers[ask]))
    else:
        # Counting is long and quickly learned.
        plain = rng.choices(questions.plain, [1 if plain.counts_to else 4 for plain in questions.plain])[0]
        found = Dialogue(setting, (User(plain.ask),), Said(answers.get(plain.ask, plain.right)))
    turns = found.turns
    if rng.random() < 0.15:
        earlier = rng.choice([plain for plain in questions.plain if not plain.counts_to])
        turns = (User(earlier.ask), Said(answers.get(earlier.ask, earlier.right)), *turns)
    found = replace(found, turns=turns, thoughts_kept=rng.random() < 0.5)
    return as_json(found, rng, questions.strange if strange else ()) if rng.random() < 0.2 else found


def _unknown(questions: Questions, setting: Setting, rng: random.Random) -> str:
    """A question without an answer: one whose tool is missing, mere words, or a known one with another word in it."""
    missing = [tool for tool in questions.tools if tool.name not in setting.tools]
    kind = rng.random()
    if missing and kind < 0.3:
        tool = rng.choice(missing)
        return fill(tool.ask, tool.draw(rng))
    if kind < 0.6:
        return " ".join(rng.choices(questions.strange, k=rng.randint(1, 12))) + rng.choice(("", ".", "?"))
    words = rng.choice(questions.plain).ask.split()
    place = rng.randrange(len(words))
    words[place] = rng.choice(questions.strange) + (words[place][-1] if words[place][-1] in ".?" else "")
    return " ".join(words)
