"""Open creations that a person has looked into."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra import repair
from infra.adopt import adopt
from vllm_fleet.base.errors import FleetError


def urn(host: str) -> str:
    return f"urn:pulumi:demo::vllm-fleet::fleet:infra:Fleet$aws:ec2/instance:Instance::{host}"


def operation(host: str, kind: str = "creating") -> dict[str, object]:
    return {"type": kind, "resource": {"urn": urn(host), "inputs": {"ami": "ami-1"}}}


def test_what_is_there_becomes_a_resource_with_the_inputs_of_its_creation() -> None:
    before = {"resources": [{"urn": "a"}], "pending_operations": [operation("main-0"), operation("main-1")]}
    now, urns = adopt(before, {"main-0": "i-1"}, [])
    assert urns == [urn("main-0")]
    assert now["resources"] == [{"urn": "a"}, {"urn": urn("main-0"), "inputs": {"ami": "ami-1"}, "id": "i-1"}]
    assert now["pending_operations"] == [operation("main-1")]


def test_what_is_not_there_is_forgotten_and_other_operations_stay() -> None:
    before = {"pending_operations": [operation("main-0"), operation("main-0", "updating")]}
    now, urns = adopt(before, {}, ["main-0"])
    assert urns == []
    assert now["pending_operations"] == [operation("main-0", "updating")]


def test_only_what_was_begun_is_adopted() -> None:
    with pytest.raises(FleetError, match=r"the creation of main-9 was not interrupted"):
        adopt({"pending_operations": [operation("main-0")]}, {"main-9": "i-1"}, [])


def test_what_was_not_begun_is_not_forgotten_either() -> None:
    with pytest.raises(FleetError, match=r"the creation of main-9 was not interrupted.*these were: main-0"):
        adopt({"pending_operations": [operation("main-0")]}, {}, ["main-9"])


@pytest.mark.parametrize(
    ("stack", "code", "says"), [("demo", 0, "no run left anything"), ("demoo", 2, "no stack 'demoo'")]
)
def test_the_command_says_when_there_is_nothing_to_do_and_when_there_is_no_such_stack(
    stack: str,
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = tmp_path / ".pulumi" / "stacks" / "vllm-fleet" / "demo.json"
    state.parent.mkdir(parents=True)
    state.write_text('{"checkpoint": {"latest": {}}}', encoding="utf-8")
    monkeypatch.setenv("PULUMI_BACKEND_URL", f"file://{tmp_path}")
    monkeypatch.setattr("sys.argv", ["repair", stack])
    assert repair.main() == code
    assert says in capsys.readouterr().err
