"""The screen of long work: its lines, its logs, and what it does when a part fails."""

from __future__ import annotations

import io
import sys
import threading
from pathlib import Path

import pytest

from lab import progress
from lab.progress import Board, Phase, describe_line
from vllm_fleet.base.errors import ErrorCode, FleetError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLLM_FLEET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run_python(phase: Phase, code: str) -> None:
    phase.run(sys.executable, "-c", code)


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("TASK [vllm_engine : Install the engine] ****", "vllm_engine : Install the engine"),
        ("PLAY [Install the engines] *****", "Install the engines"),
        ("ok: [lab-0]", ""),
        ("", ""),
        ("*****", ""),
        ("\x1b[1mI: Retrieving libc6\x1b[0m", "I: Retrieving libc6"),
        ("lab: building the engine", "building the engine"),
        ("10%\r20%", "20%"),
    ],
)
def test_note_of_a_line(line: str, note: str) -> None:
    assert describe_line(line) == note


def test_short_phases_print_nothing_and_leave_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with Board("job") as board:
        board.do(board.add("One thing", 10), lambda phase: run_python(phase, "print('hello')"))
    assert capsys.readouterr().err == ""
    assert "hello" in (board.folder / "one-thing.log").read_text()
    assert board.folder.stat().st_mode & 0o077 == 0


def test_long_phases_print_when_they_start_and_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_MOMENT_SECONDS", 0.0)
    printed = threading.Event()
    say = Board._say

    def say_and_tell(board: Board, line: str) -> None:
        say(board, line)
        printed.set()

    monkeypatch.setattr(Board, "_say", say_and_tell)

    def wait_for_a_line(phase: Phase) -> None:
        phase.note = "fetching"
        phase.next_line_seconds = 0.0
        assert printed.wait(30)

    with Board("job") as board:
        board.do(board.add("One thing", 90), wait_for_a_line)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("One thing: 0:0")
    assert first.endswith("of about 1:30 fetching")
    assert last.startswith("One thing: done after")


def test_a_failure_shows_the_end_of_the_log_and_where_the_rest_is(capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys; print('\\n'.join(map(str, range(100)))); sys.exit(3)"
    with (
        pytest.raises(FleetError, match=r"ended with exit code 3:\n  85\n(.*\n)*  99") as caught,
        Board("job") as board,
    ):
        board.do(board.add("One thing", 1), lambda phase: run_python(phase, code))
    assert caught.value.code is ErrorCode.WORK_FAILED
    assert "one-thing.log" in caught.value.hint
    assert "One thing: failed after" in capsys.readouterr().err


def test_a_refusal_of_a_program_stays_a_refusal() -> None:
    with pytest.raises(FleetError) as caught, Board("job") as board:
        board.do(board.add("One thing", 1), lambda phase: run_python(phase, "raise SystemExit(2)"))
    assert caught.value.exit_code == 2


def test_phases_run_side_by_side_and_all_failures_are_reported(tmp_path: Path) -> None:
    both = threading.Barrier(2)

    def meet(phase: Phase) -> None:
        both.wait(30)  # breaks unless the other phase runs at the same time
        raise FleetError(f"{phase.name} failed")

    with pytest.raises(FleetError, match="One failed") as caught, Board("job") as board:
        board.do_together([(board.add("One", 1), meet), (board.add("Two", 1), meet)])
    assert [fault.message for fault in caught.value.others] == ["Two failed"]
    assert {phase.state for phase in board.phases} == {"failed"}


def test_only_the_newest_logs_are_kept(cache: Path) -> None:
    for number in range(15):
        (cache / "logs" / f"job-20260101-0000{number:02d}-1").mkdir(parents=True)
    with Board("job") as board:
        pass
    kept = sorted((cache / "logs").iterdir())
    assert len(kept) == 10
    assert kept[-1] == board.folder


def test_table_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    board = Board("job")
    waiting, running, done = board.add("Waiting", 10), board.add("Running", 125), board.add("Done", 10)
    running.note = "[not markup] fetching"
    with running:
        board.do(done, lambda _phase: None)
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(board._table())
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines[0] == ["Waiting", "waiting"]
    assert lines[1][:6] == ["Running", "running", "0:00", "of", "about", "2:05"]
    assert "[not" in lines[1]
    assert lines[2][:2] == ["Done", "done"]
    assert waiting.state == "waiting"
