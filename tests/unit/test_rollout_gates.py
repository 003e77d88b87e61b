"""Which gates a host passes, what is compared with what, and what is kept: with answers in place of a host."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from stand_in_gates import QUESTIONS

from vllm_fleet.base.errors import FleetError
from vllm_fleet.facts.rollout_answer import Gated
from vllm_fleet.operate.rollout.gates import GateError, HostGates, Measurements
from vllm_fleet.operate.rollout.hosts import RolloutHost
from vllm_fleet.operate.rollout.programs import CommandError, Programs
from vllm_fleet.operate.rollout.references import read_reference
from vllm_fleet.schema.gates import GATES

FIGURES: dict[str, Any] = {
    "numerics": {"logprobs": [[-1.0, -2.0], [-3.0]]},
    "speed": {"ttft_seconds": 0.1, "tokens_per_second": 100.0, "noise": 0.01, "rounds": 4},
}


class Answers:
    """Answers as the program on a host does; ``figures`` and ``refused`` say how."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.prompts = 0
        self.figures = dict(FIGURES)
        self.refused = ""

    async def run_packed(self, _host: str, _source: str, question: Mapping[str, Any], _kind: type) -> Gated:
        self.asked += question["gates"]
        self.prompts = len(question["prompts"])
        results = []
        for gate in question["gates"]:
            result = {"gate": gate, "instance": "0", "passed": True, "why": "", "lines": [], "seconds": 1.0}
            result |= {"figures": self.figures.get(gate, {})}
            if gate == self.refused:
                result |= {"passed": False, "why": "it is wrong", "lines": ["a line"]}
            results.append(result)
        return Gated.model_validate({"results": results})


def host(folder: Path, *, canary: bool = True, key: str = "k", **gates: Any) -> RolloutHost:
    reference = str(folder / f"h100-1--vllm-1--{key}.json")
    return RolloutHost(
        "a", "d" * 16, {}, ({"name": "0"},), (), {}, canary=canary, gates={**QUESTIONS, "reference": reference, **gates}
    )


def prove(answers: Answers, of: RolloutHost, before: Mapping[str, Any] | None = None) -> Measurements:
    found = Measurements()
    gates = HostGates(cast("Programs", answers))
    asyncio.run(gates.prove(of, ["0"], before or {}, found))
    gates.keep(of, found.logprobs, found.speed)
    return found


def test_a_canary_passes_all_gates_and_others_those_that_are_brief(tmp_path: Path) -> None:
    full, brief = Answers(), Answers()
    prove(full, host(tmp_path))
    prove(brief, host(tmp_path, canary=False))
    assert full.asked == list(GATES)
    assert brief.asked == [gate for gate in GATES if gate not in ("speed", "questions")]
    assert (full.prompts, brief.prompts) == (2, 1)


def test_a_gate_that_is_waived_is_not_asked_and_its_reason_is_told(tmp_path: Path) -> None:
    answers = Answers()
    found = prove(answers, host(tmp_path, waived={"tools": "no client has tools"}))
    assert "tools" not in answers.asked
    assert [result["waived"] for result in found.results if result["gate"] == "tools"] == ["no client has tools"]


def test_a_role_that_is_used_alone_asks_for_the_log(tmp_path: Path) -> None:
    answers = Answers()
    of = RolloutHost("a", "d" * 16, {}, ({"name": "0"},), (), {})
    asyncio.run(HostGates(cast("Programs", answers)).prove(of, ["0"], {}, Measurements()))
    assert answers.asked == ["log"]
    assert not list(tmp_path.iterdir())


def test_a_gate_that_does_not_pass_ends_the_gates(tmp_path: Path) -> None:
    answers = Answers()
    answers.refused = "tools"
    with pytest.raises(GateError) as fault:
        prove(answers, host(tmp_path))
    assert (fault.value.gate, fault.value.log) == ("tools", ("a line",))
    assert "it is wrong (instance 0)" in fault.value.text


def test_other_numbers_than_those_of_the_accepted_release_do_not_pass(tmp_path: Path) -> None:
    prove(Answers(), host(tmp_path))
    wrong = Answers()
    wrong.figures["numerics"] = {"logprobs": [[-1.08, -2.08], [-3.08]]}
    prove(wrong, host(tmp_path, key="another-build", waived={"speed": "a test"}))
    with pytest.raises(GateError, match="log-probabilities differ"):
        prove(wrong, host(tmp_path))
    assert "speed" not in wrong.asked[-2:], "what comes after it was not asked"


def test_the_first_release_of_a_model_is_kept_and_one_that_is_no_canary_keeps_nothing(tmp_path: Path) -> None:
    prove(Answers(), host(tmp_path, canary=False))
    assert not list(tmp_path.iterdir())
    of = host(tmp_path)
    prove(Answers(), of)
    kept = read_reference(Path(of.gates["reference"]))
    assert kept is not None
    assert (kept.host_class, kept.engine, kept.host) == ("h100-1", "vllm-1", "a")
    assert sorted(kept.logprobs.values()) == [[-3.0], [-1.0, -2.0]]
    assert kept.speed is not None


def test_speed_is_compared_with_the_release_before_on_the_same_host_then_with_what_was_kept(tmp_path: Path) -> None:
    slow = Answers()
    strict = {**QUESTIONS["speed"], "noise": 0.05, "budget": {"ttft": 0.1, "tokens_per_second": 0.1}}
    slow.figures["speed"] = {**FIGURES["speed"], "tokens_per_second": 80.0}
    of = host(tmp_path, speed=strict)
    with pytest.raises(GateError, match=r"80\.0 tokens/s, 20% fewer than the 100\.0"):
        prove(slow, of, {"0": FIGURES["speed"]})
    prove(slow, of, {"0": slow.figures["speed"]})
    slow.figures["speed"] = {**FIGURES["speed"], "tokens_per_second": 60.0}
    with pytest.raises(GateError, match=r"60\.0 tokens/s, 25% fewer than the 80\.0"):
        prove(slow, of)


@pytest.mark.parametrize(
    ("gate", "figures"),
    [("numerics", {"logprobs": [["x"]]}), ("numerics", {}), ("speed", {"ttft_seconds": -1}), ("speed", {})],
)
def test_figures_that_cannot_be_read_do_not_pass(tmp_path: Path, gate: str, figures: dict[str, Any]) -> None:
    answers = Answers()
    answers.figures[gate] = figures
    with pytest.raises(GateError, match="that cannot be read"):
        prove(answers, host(tmp_path))


def test_the_speed_before_is_measured_on_canaries_and_may_fail(tmp_path: Path) -> None:
    answers = Answers()
    gates = HostGates(cast("Programs", answers))

    def before(of: RolloutHost) -> Mapping[str, Any]:
        return asyncio.run(gates.measure_before(of, ["0"]))

    assert before(host(tmp_path)) == {"0": FIGURES["speed"]}
    assert before(host(tmp_path, canary=False)) == {}
    assert before(host(tmp_path, waived={"speed": "a test"})) == {}
    answers.refused = "speed"
    assert before(host(tmp_path)) == {}

    async def silent(*_: object) -> Gated:
        raise CommandError("a", "gives no answer", silent=True)

    answers.run_packed = silent  # type: ignore[method-assign]
    assert before(host(tmp_path)) == {}


def test_a_reference_that_cannot_be_read_is_told_before_anything_is_touched(tmp_path: Path) -> None:
    of = host(tmp_path)
    Path(of.gates["reference"]).write_text("{")
    gates = HostGates(cast("Programs", Answers()))
    with pytest.raises(FleetError, match="is no reference of a release"):
        gates.check(of)
    with pytest.raises(GateError, match="is no reference of a release"):
        asyncio.run(gates.prove(of, ["0"], {}, Measurements()))
