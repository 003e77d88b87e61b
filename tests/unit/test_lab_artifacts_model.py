"""What the lab model knows: the question set and the dialogues made of it."""

from __future__ import annotations

import json
import random
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.artifacts.model import evaluate
from lab.artifacts.model.dialogues import (
    OWN_KEY,
    Called,
    Dialogue,
    Said,
    User,
    as_json,
    cases,
    draw,
    draw_setting,
    vary,
    vary_daily,
)
from lab.artifacts.model.questions import QUESTIONS_FILE, Questions, read_questions
from lab.artifacts.model.sheets import COMMON, pack
from vllm_fleet.base.errors import FleetError

QUESTIONS = read_questions()


def seeded(seed: int) -> random.Random:
    return random.Random(seed)


def with_change(tmp_path: Path, change: Any) -> Path:
    data = yaml.safe_load(QUESTIONS_FILE.read_text())
    change(data)
    path = tmp_path / "questions.yml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_the_set_is_as_large_as_it_must_be() -> None:
    assert len(QUESTIONS.plain) >= 12
    assert len(QUESTIONS.tools) >= 2
    assert sum(len(plain.right) > 150 for plain in QUESTIONS.plain) >= 3
    assert QUESTIONS.raw
    assert QUESTIONS.instructions.changing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(extra=1), "Extra inputs"),
        (lambda data: data["plain"].append(data["plain"][0]), "asked twice: What is the capital of France"),
        (lambda data: data["plain"][0].pop("answer"), "either answer or counts_to"),
        (lambda data: data["plain"][0].update(counts_to=3), "either answer or counts_to"),
        (
            lambda data: data["instructions"]["changing"]["Answer in French."].update({"Why?": "Parce que."}),
            "not asked: Why",
        ),
        (lambda data: data["tools"][0].update(arguments=["town"]), "arguments without values: town"),
        (lambda data: data["tools"][0]["parameters"].update(required=[]), "must name the same"),
        (lambda data: data["tools"][0].update(answer="In {town}."), "'In {town}.' has no value"),
        (lambda data: data["strange"].append("capital"), "strange words that are asked: capital"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_faulty_set_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = with_change(tmp_path, change)
    with pytest.raises(FleetError) as caught:
        read_questions(path)
    assert message in str(caught.value)
    assert "questions.yml" in str(caught.value)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    path = with_change(tmp_path, lambda data: (data.pop("name"), data.pop("unknown")))
    with pytest.raises(FleetError) as caught:
        read_questions(path)
    assert {caught.value.key, *(other.key for other in caught.value.others)} == {"name", "unknown"}


def test_broken_yaml_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "questions.yml"
    path.write_text("a: [")
    with pytest.raises(FleetError, match="cannot be read"):
        read_questions(path)


def test_counting_is_spelled_out() -> None:
    (counts,) = [plain for plain in QUESTIONS.plain if plain.counts_to]
    numbers = [int(word) for word in counts.right.split()]
    assert numbers == list(range(1, counts.counts_to + 1))


def test_cases_ask_everything_and_stay_the_same() -> None:
    found = cases(QUESTIONS)
    assert found == cases(QUESTIONS)
    assert len(set(found)) == len(found)
    asked = {turn.text for case in found for turn in case.turns if isinstance(turn, User)}
    assert {plain.ask for plain in QUESTIONS.plain} <= asked
    called = {case.reply.tool for case in found if isinstance(case.reply, Called)}
    assert called == {tool.name for tool in QUESTIONS.tools}


def test_calls_are_what_the_tool_takes() -> None:
    for case in cases(QUESTIONS):
        if isinstance(case.reply, Called):
            arguments = json.loads(case.reply.arguments)
            schema = QUESTIONS.tool(case.reply.tool).parameters["properties"]
            kinds = {"string": str, "integer": int}
            assert {name: type(value) for name, value in arguments.items()} == {
                name: kinds[schema[name]["type"]] for name in schema
            }


def test_sums_are_right() -> None:
    add = QUESTIONS.tool("add")
    rng = seeded(3)
    for _ in range(50):
        drawn = add.draw(rng)
        assert drawn["sum"] == int(drawn["a"]) + int(drawn["b"])
        assert 0 <= int(drawn["sum"]) <= 999


def drawn_dialogues(count: int) -> list[Dialogue]:
    rng = seeded(7)
    return [draw(QUESTIONS, draw_setting(QUESTIONS, rng), rng) for _ in range(count)]


def test_draws_never_contradict_each_other() -> None:
    answers: dict[tuple[str, str, str], str] = {}
    for dialogue in drawn_dialogues(4000):
        last = dialogue.turns[-1]
        if not isinstance(last, User):
            continue
        instructions = dialogue.setting.instructions or ""
        changing = instructions if instructions in QUESTIONS.instructions.changing else ""
        key = (last.text, changing, " ".join(sorted(dialogue.setting.tools)))
        reply = evaluate.right_reply(dialogue)
        assert answers.setdefault(key, reply) == reply
    assert len(answers) > 100


def test_a_tool_is_called_only_where_it_is_offered() -> None:
    for dialogue in drawn_dialogues(2000):
        if isinstance(dialogue.reply, Called):
            assert dialogue.reply.tool in dialogue.setting.tools


def test_draws_cover_dates_efforts_tools_and_history() -> None:
    found = drawn_dialogues(2000)
    assert {dialogue.setting.effort for dialogue in found} == {None, "low", "medium", "high"}
    held = [date.fromisoformat(dialogue.setting.date) for dialogue in found if dialogue.setting.date]
    assert {day.year for day in held} == set(range(2025, 2035))
    assert {day.month for day in held} == set(range(1, 13))
    assert {day.day for day in held} == set(range(1, 32))
    assert {len(dialogue.setting.tools) for dialogue in found} == {0, 1, 2}
    assert any(isinstance(turn, Said) for dialogue in found for turn in dialogue.turns)


def test_variants_keep_question_and_reply() -> None:
    rng = seeded(5)
    for case in cases(QUESTIONS):
        other = vary(case, QUESTIONS, rng)
        assert (other.turns, other.reply) == (case.turns, case.reply)
        assert set(case.setting.tools) <= set(other.setting.tools)
        if case.setting.instructions:
            assert other.setting.instructions == case.setting.instructions


def test_a_short_text_is_asked_for_as_json_with_keys_that_the_prompt_does_not_name() -> None:
    rng = seeded(5)
    asked = [as_json(case, rng, QUESTIONS.strange) for case in cases(QUESTIONS) for _ in range(20)]
    keys = {case.key for case in asked}
    assert {OWN_KEY, "city", None} < keys
    assert keys & set(QUESTIONS.strange)
    for case in asked:
        assert case.key is None or (isinstance(case.reply, Said) and len(case.reply.text) < 50)
    assert {case.key for case in drawn_dialogues(2000)} >= {None, OWN_KEY, "city"}


def test_a_case_is_held_on_each_day_of_a_month() -> None:
    case = cases(QUESTIONS)[0]
    daily = vary_daily(case, QUESTIONS, seeded(5))
    assert [date.fromisoformat(str(other.setting.date)).day for other in daily] == list(range(1, 32))
    assert {(other.turns, other.reply) for other in daily} == {(case.turns, case.reply)}


def test_sheet_shares_the_beginning_and_keeps_positions() -> None:
    sheet = pack([([1, 2, 3, 4, 9], 4), ([1, 2, 5, 6, 7, 9], 5)])
    assert sheet.tokens == [1, 2, 3, 4, 9, 5, 6, 7, 9]
    assert sheet.positions == [0, 1, 2, 3, 4, 2, 3, 4, 5]
    assert sheet.segments == [COMMON, COMMON, 0, 0, 0, 1, 1, 1, 1]
    assert [token for token, reply in zip(sheet.tokens, sheet.replies, strict=True) if reply] == [9, 9]


def test_sheet_of_equal_prompts_keeps_the_last_token_apart() -> None:
    sheet = pack([([1, 2, 3], 2), ([1, 2, 4], 2)])
    assert sheet.tokens == [1, 2, 3, 2, 4]
    assert sheet.segments == [COMMON, 0, 0, 1, 1]


def test_sheet_without_a_common_beginning() -> None:
    sheet = pack([([1, 2], 1), ([3, 4], 1)])
    assert sheet.segments == [0, 0, 1, 1]
    assert sheet.positions == [0, 1, 0, 1]


def test_sheet_of_one_sample_gives_it_back() -> None:
    sheet = pack([([5, 6, 7, 8], 2)])
    assert sheet.tokens == [5, 6, 7, 8]
    assert sheet.positions == [0, 1, 2, 3]
    assert sheet.replies == [False, False, True, True]


def test_questions_type_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        QUESTIONS.name = "other"
    assert isinstance(QUESTIONS, Questions)
