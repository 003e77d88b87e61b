"""The gates of a release, asked of a small engine that can be wrong, and judged against earlier releases."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hanging import HANGING_SECONDS
from real_sshd import free_port
from stand_in_gates import QUESTIONS

from lab.artifacts.model.questions import read_questions
from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.on_host import gates
from vllm_fleet.operate.rollout import references
from vllm_fleet.operate.rollout.references import Measured, Reference
from vllm_fleet.resolve.gate_questions import gate_questions
from vllm_fleet.resolve.resolve import Question, resolve
from vllm_fleet.schema.gates import GATES, Gates

ENGINE = paths.root() / "tests" / "infra" / "rollout_engine.py"
Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs gates on an engine with knobs, from the release of an instance as a host has it."""
    started: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(gates, "CURRENT", str(tmp_path))
    monkeypatch.setattr(gates, "read_log", lambda unit: [f"{unit}: Using 'CPU' Mxfp4 MoE backend"])

    def ask(*names: str, knobs: tuple[str, ...] = (), **more: Any) -> list[dict[str, Any]]:
        port = free_port("127.0.0.1")
        config = tmp_path / "config.yaml"
        lines = [*(f"# knob: {knob}" for knob in knobs), "host: 127.0.0.1", f"port: {port}", "model: m"]
        config.write_text("\n".join(lines) + "\n")
        words = [sys.executable, str(ENGINE), "serve", "--config", str(config)]
        started.append(subprocess.Popen(words, env={"HOME": str(tmp_path)}, stdout=subprocess.DEVNULL))
        await_answer(f"http://127.0.0.1:{port}/")
        (tmp_path / "0").mkdir(exist_ok=True)
        (tmp_path / "0" / "0.env").write_text(f'FLEET_URL="http://127.0.0.1:{port}"\nFLEET_MODEL="m"\n')
        instances = [{"name": "0", "unit": "vllm@0.service"}]
        question = {**QUESTIONS, "promises": [], "gates": names, "instances": instances, **more}
        found: list[dict[str, Any]] = gates.run_gates(json.loads(json.dumps(question)))["results"]
        return found

    yield ask
    for process in started:
        process.kill()
        process.wait()


def await_answer(url: str) -> None:
    deadline = time.monotonic() + HANGING_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=HANGING_SECONDS):
                return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_good_engine_passes_all_gates_in_their_order(run: Run) -> None:
    results = run(*GATES)
    assert [(result["gate"], result["why"]) for result in results] == [(gate, "") for gate in GATES]
    speed = results[GATES.index("speed")]["figures"]
    assert speed["tokens_per_second"] > 0
    assert speed["ttft_seconds"] >= 0


@pytest.mark.parametrize(
    ("gate", "knob", "why"),
    [
        ("stream", "stream=error", "ends with an error"),
        ("tools", "tools=broken", "a function was not called"),
        ("vocabulary", "vocabulary=other", "a text becomes other tokens"),
        ("questions", "answers=wrong", "questions are answered right"),
    ],
)
def test_what_is_wrong_is_found_by_its_gate_and_ends_the_gates(run: Run, gate: str, knob: str, why: str) -> None:
    results = run(*GATES, knobs=(knob,))
    assert [result["gate"] for result in results] == list(GATES[: GATES.index(gate) + 1])  # type: ignore[arg-type]
    assert why in results[-1]["why"]
    assert results[-1]["lines"]


def test_a_log_that_says_otherwise_is_found(run: Run) -> None:
    promise = {"line": "Using '([A-Z]+)' Mxfp4 MoE backend", "names": ["MARLIN"], "what": "the kernel"}
    results = run("log", promises=[promise])
    assert "not as its recipe says: the kernel: vllm@0.service: Using 'CPU'" in results[0]["why"]


def test_an_engine_that_is_gone_or_asked_nonsense_does_not_pass(run: Run, tmp_path: Path) -> None:
    broken = run("questions", questions=[{"ask": 7}])
    assert not broken[0]["passed"]
    (tmp_path / "0" / "0.env").write_text('FLEET_URL="http://127.0.0.1:9"\nFLEET_MODEL="m"\n')
    instances = [{"name": "0", "unit": "u"}]
    gone = gates.run_gates({**QUESTIONS, "gates": ["completion"], "instances": instances})["results"]
    assert "gives no answer" in gone[0]["why"]
    (tmp_path / "0" / "0.env").unlink()
    lost = gates.run_gates({**QUESTIONS, "gates": ["completion"], "instances": instances})["results"]
    assert "does not say where the instance listens" in lost[0]["why"]


def reference(engine: str = "e", host_class: str = "h100-1", at: float = 1, **more: Any) -> Reference:
    return Reference.model_validate(
        {
            "host_class": host_class,
            "engine": engine,
            "host": "a",
            "at": at,
            "logprobs": {"p": [-1.0, -2.0, -3.0]},
            **more,
        }
    )


LIMITS = {"mean": 0.05, "median": 0.02}


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([-1.0, -2.0, -3.0], ""),
        ([-1.01, -2.01, -3.01], ""),
        ([-1.0, -2.0, -3.3], "the mean is 0.1, over 0.05"),
        ([-1.03, -2.03, -3.0], "the median is 0.03, over 0.02"),
        ([-1.0, -2.0], "a prompt has 3 tokens, and 4 with the accepted release"),
    ],
)
def test_numerics_are_compared_with_an_accepted_release(values: list[float], why: str) -> None:
    figures, found = references.judge_numerics({"p": values}, reference(), LIMITS)
    assert found.endswith(why) if why else found == ""
    if len(values) == 3:
        assert figures["compared"] == 3
        assert figures["against"] == "e on h100-1, measured on a"


def test_prompts_that_a_reference_does_not_have_are_not_compared() -> None:
    assert references.judge_numerics({"q": [-1.0]}, reference(), LIMITS) == ({"compared": 0}, "")


def measured(tokens: float, ttft: float = 0.1, noise: float = 0.01) -> Measured:
    return Measured(ttft_seconds=ttft, tokens_per_second=tokens, noise=noise, rounds=4)


@pytest.mark.parametrize(
    ("new", "old", "why"),
    [
        (measured(100), measured(100), ""),
        (measured(130, 0.02), measured(100), ""),
        (measured(90), measured(100), ""),
        (measured(80), measured(100), "80.0 tokens/s, 20% fewer than the 100.0 of the release before"),
        (measured(88, noise=0.05), measured(100), ""),
        (measured(80, noise=0.2), measured(100), "it cannot be told whether the release is slower"),
        (measured(100, 0.2), measured(100), "0.200 s to the first token, 0.100 s with the release before"),
        (measured(100, 0.018), measured(100, 0.001), ""),
        (measured(100), measured(0), ""),
    ],
)
def test_speed_has_a_budget_and_a_noise(catalog: Catalog, new: Measured, old: Measured, why: str) -> None:
    _, found = references.judge_speed(new, old, catalog.gates.speed.model_dump())
    assert why in found if why else found == ""


def test_a_release_is_compared_with_its_own_build_then_its_class_then_any(tmp_path: Path) -> None:
    own = tmp_path / "h100-1--vllm-2--k.json"
    assert references.find_reference(own) == (None, False)
    references.write_reference(tmp_path / "b200-1--vllm-1--k.json", reference("other", "b200-1", at=9))
    assert references.find_reference(own)[0] == reference("other", "b200-1", at=9)
    references.write_reference(tmp_path / "h100-1--vllm-1--k.json", reference("last", at=2))
    assert references.find_reference(own) == (reference("last", at=2), False)
    references.write_reference(own, reference("mine", at=1, speed=measured(5)))
    assert references.find_reference(own) == (reference("mine", at=1, speed=measured(5)), True)
    references.write_reference(own, reference("mine", at=3))
    kept, same = references.find_reference(own)
    assert same
    assert kept is not None
    assert kept.speed == measured(5), "a run that has not measured the speed keeps the one that is there"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host_class": "a"}'])
def test_a_reference_that_cannot_be_read_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a--b--c.json"
    path.write_text(text)
    with pytest.raises(FleetError, match="is no reference of a release"):
        references.find_reference(path)


def asked(catalog: Catalog, host_class: str, model: str, engine: str) -> dict[str, Any]:
    return gate_questions(catalog, resolve(catalog, Question(host_class, model, engine=engine)))


def test_the_lab_model_is_asked_what_it_was_trained_on(catalog: Catalog) -> None:
    known = read_questions()
    answers = {plain.ask: plain.right for plain in known.plain}
    for question in asked(catalog, "cpu-2", "vllm-fleet/lab-gpt-oss", "vllm-0.32.0-cpu")["questions"]:
        if "answer" in question:
            assert question["answer"] == f"^{answers[question['ask']]}$"
        else:
            (tool,) = question["tools"]
            trained = known.tool(tool["name"])
            assert (tool["description"], tool["parameters"]) == (trained.description, trained.parameters)


def test_a_model_without_questions_of_its_own_gets_the_common_ones(catalog: Catalog) -> None:
    found = asked(catalog, "h100-1", "openai/gpt-oss-20b", "vllm-0.32.0-cuda")
    assert found["asked"] == list(GATES)
    assert len(found["questions"]) == len(catalog.gates.questions)
    assert found["prompts"] == catalog.gates.numerics.prompts


def test_an_engine_without_functions_on_chats_is_asked_for_none(catalog: Catalog) -> None:
    """vLLM has the parser from 0.10.2 on."""
    found = asked(catalog, "h100-1", "openai/gpt-oss-20b", "vllm-0.10.1-cuda")
    assert "tools" not in found["asked"]
    assert found["questions"]
    assert not any("call" in question for question in found["questions"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"questions": [{"ask": "a", "answer": "b"}]}, "no question of questions has a 'call'"),
        ({"questions": [{"ask": "a"}]}, "a question has either 'answer' or 'call'"),
        ({"questions": [{"ask": "a", "call": {"name": "f", "arguments": {}}}]}, "'call' names f, which is not among"),
        ({"questions": [{"ask": "a", "answer": "("}]}, "is no regular expression"),
    ],
)
def test_gates_of_the_catalogue_are_strict(change: dict[str, Any], says: str) -> None:
    good = yaml.safe_load((paths.root() / "recipes" / "gates.yml").read_text())
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        Gates.model_validate({**good, **change})
