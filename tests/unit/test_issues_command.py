"""``vllm-fleet issues``: what public log lines show, and what the command says about a log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.cli import app, issues
from vllm_fleet.resolve import known_issues


def public_lines() -> list[tuple[str, str]]:
    """What each line of the fixture is, and the line."""
    text = (paths.root() / "tests" / "fixtures" / "log_lines.txt").read_text(encoding="utf-8")
    blocks = [block.split("\n", 1) for block in text.split("\n## ")[1:]]
    return [(head.split(" | ")[0], line.strip("\n")) for head, line in blocks]


LINES = public_lines()


def run(text: str, *options: str) -> Result:
    return CliRunner().invoke(app, ["issues", "-", *options], input=text)


@pytest.mark.parametrize(("what", "line"), LINES, ids=[f"{at}-{what}" for at, (what, _) in enumerate(LINES)])
def test_a_public_line_shows_what_it_is(what: str, line: str) -> None:
    shown = json.loads(run(f"{line}\n", "--json").stdout)
    ids = [issue["id"] for issue in shown["issues"]]
    errors = [f"{'Xid' if e['kind'] == 'xid' else 'SXid'} {e['code']} {e['do']}" for e in shown["gpu_errors"]]
    if what == "nothing":
        assert (ids, errors) == ([], [])
    else:
        assert what in (*ids, *errors)


def test_there_are_enough_public_lines_and_each_names_its_address() -> None:
    assert len([what for what, _ in LINES if what != "nothing"]) >= 35
    text = (paths.root() / "tests" / "fixtures" / "log_lines.txt").read_text(encoding="utf-8")
    assert text.count("\n## ") == text.count(" | https://")


def test_an_issue_is_told_once_with_its_line_and_what_to_do() -> None:
    log = "INFO start\nRuntimeError: No HIP GPUs are available\nINFO\nRuntimeError: No HIP GPUs are available\n"
    shown = run(log).stdout
    assert shown.startswith("no-hip-gpus (line 2 and 1 more)\n")
    assert "  fix: Look with rocminfo as the user vllm" in shown
    assert shown.count("No HIP GPUs are available") == 1


def test_a_log_without_an_issue_says_so() -> None:
    done = run("INFO Application startup complete.\n")
    assert (done.exit_code, done.stdout) == (0, "no known issue\n")


def test_a_log_of_a_stranger_moves_no_cursor() -> None:
    done = run("\x1b[2J\x1b]0;title\x07 No HIP GPUs are available \u202e\r\n\xff\n")
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    assert "no-hip-gpus" in done.stdout


def test_a_line_without_an_end_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    find = known_issues.find_shown
    monkeypatch.setattr(
        known_issues,
        "find_shown",
        lambda issues, lines: find(issues, (read.append(len(line)) or line for line in lines)),
    )
    assert run("x" * (issues.LINE_BYTES * 3)).stdout == "no known issue\n"
    assert read == [issues.LINE_BYTES] * 3


def test_a_file_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="cannot be read: No such file or directory") as caught:
        issues.command(str(tmp_path / "none.log"))
    assert caught.value.file == str(tmp_path / "none.log")


def test_a_host_narrows_the_issues_to_its_own(fleets: Path) -> None:
    line = "No HIP GPUs are available\nFree memory on device is less than desired GPU memory utilization"
    everything = json.loads(run(line, "--json").stdout)["issues"]
    own = json.loads(run(line, "--json", "--host", "lab-0", "--fleet", "golden").stdout)["issues"]
    assert [issue["id"] for issue in everything] == ["no-hip-gpus", "memory-in-use"]
    assert [issue["id"] for issue in own] == ["memory-in-use"]


def test_a_log_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "vllm.log").write_text("RuntimeError: No HIP GPUs are available\n", encoding="utf-8")
    name = str(tmp_path / "vllm.log")
    assert "no-hip-gpus" in CliRunner().invoke(app, ["issues", "--log", name]).stdout
    for words in ([], [name, "--log", name]):
        fault = CliRunner().invoke(app, ["issues", *words]).exception
        assert isinstance(fault, FleetError)
        assert fault.exit_code == 2
