"""Errors of users and errors of the program: codes, exit codes and JSON."""

from __future__ import annotations

import json

import pytest

from vllm_fleet import cli
from vllm_fleet.base.errors import ErrorCode, FleetError, InvariantError


@pytest.mark.parametrize(
    ("code", "text", "exit_code"),
    [
        (ErrorCode.BAD_INPUT, "bad-input", 2),
        (ErrorCode.REFUSED, "refused", 2),
        (ErrorCode.WORK_FAILED, "work-failed", 1),
        (ErrorCode.INTERRUPTED, "interrupted", 130),
    ],
)
def test_the_code_gives_the_exit_code_and_stays_the_same_text_in_json(
    code: ErrorCode, text: str, exit_code: int
) -> None:
    error = FleetError("is wrong", code=code)
    assert error.exit_code == exit_code
    assert json.loads(json.dumps(error.record()))["code"] == text
    assert f"{error.code}" == text
    assert code.meaning


def test_every_code_has_an_exit_code() -> None:
    assert {code: FleetError("", code=code).exit_code for code in ErrorCode} == {
        "bad-input": 2,
        "refused": 2,
        "work-failed": 1,
        "interrupted": 130,
    }


def test_a_code_that_does_not_exist_is_an_error_of_the_program() -> None:
    with pytest.raises(ValueError, match="'wrong' is not a valid ErrorCode"):
        FleetError("is wrong", code="wrong")  # type: ignore[arg-type]


def test_a_broken_invariant_is_not_reported_as_the_input_of_a_user(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: object) -> None:
        raise InvariantError("a serving host has no deployment")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(InvariantError):
        cli.main()
    assert capsys.readouterr() == ("", "")
    assert not issubclass(InvariantError, FleetError)
