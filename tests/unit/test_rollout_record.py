"""The record of a rollout: what is written, by which process, and what a reader makes of a damaged one."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hanging import HANGING_SECONDS

from vllm_fleet.base import atomic_files, paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.operate import run_owner
from vllm_fleet.operate.rollout import record
from vllm_fleet.operate.rollout.hosts import Progress
from vllm_fleet.operate.rollout.record import Record, open_record, read_record
from vllm_fleet.operate.rollout.run import find_resumed

PID = os.getpid()
FLEETS = {"prod": ["a", "b"]}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "run_dir", lambda fleet: tmp_path / fleet)
    return tmp_path / "prod" / "rollouts"


def names(file: Path) -> list[str]:
    return [event.event for event in read_record(file)]


def test_all_processes_of_a_run_write_into_one_file_for_its_user_alone(state: Path) -> None:
    open_record(FLEETS, PID).write("batch", hosts=["a"])
    open_record(FLEETS, PID).write("ended", state="done")
    (file,) = state.iterdir()
    assert names(file) == ["run", "batch", "ended"]
    run = read_record(file)[0]
    assert isinstance(run, record.Run)
    assert (run.owner, run.hosts, run.check) == (run_owner.name_run(PID), ["a", "b"], False)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.name.endswith(f"Z-{PID}.jsonl")


def test_a_process_that_has_the_number_of_an_old_one_begins_its_own(state: Path) -> None:
    state.mkdir(parents=True)
    old = state / f"20200101T000000Z-{PID}.jsonl"
    other = run_owner.name_run(PID).replace("started ", "started 1")
    Record({"a": old}).write("run", owner=other, fleet="prod", kind="rollout", check=False, hosts=["a"])
    open_record(FLEETS, PID)
    assert len(list(state.iterdir())) == 2
    assert names(old) == ["run"]


def test_a_run_on_two_fleets_writes_to_each_what_is_its_own(tmp_path: Path) -> None:
    opened = open_record({"prod": ["a"], "rack": ["b"]}, PID)
    opened.write("batch", hosts=["a", "b"])
    opened.write("begin", host="b", phase="drain")
    opened.write("begin", host="unknown", phase="drain")
    (prod,), (rack,) = record.list_records("prod"), record.list_records("rack")
    assert (names(prod), names(rack)) == (["run", "batch"], ["run", "batch", "begin"])
    batch = read_record(rack)[1]
    assert isinstance(batch, record.BatchBegun)
    assert batch.hosts == ["b"]


def test_a_phase_ends_also_where_it_fails() -> None:
    opened = open_record(FLEETS, PID)
    with pytest.raises(RuntimeError), opened.phase("start", "a", "b", instance="0"):
        raise RuntimeError
    begun, ended = read_record(record.list_records("prod")[0])[1::2]
    assert isinstance(begun, record.PhaseBegun)
    assert (begun.host, begun.phase, begun.instance) == ("a", "start", "0")
    assert isinstance(ended, record.PhaseEnded)
    assert ended.failed


def test_an_outcome_has_all_that_a_host_became_but_its_log_probabilities() -> None:
    opened = open_record(FLEETS, PID)
    progress = Progress("returned", "too slow", "speed", ["a line"], {"0": 1.5}, logprobs={"p": [-1.0]})
    opened.write_outcomes({"a": progress})
    text = record.list_records("prod")[0].read_text()
    outcome = read_record(record.list_records("prod")[0])[-1]
    assert isinstance(outcome, record.Outcome)
    assert (outcome.state, outcome.gate, outcome.log, outcome.seconds) == ("returned", "speed", ["a line"], {"0": 1.5})
    assert "logprobs" not in text


def test_half_a_line_at_the_end_is_left_out_and_cut_before_more_is_written() -> None:
    open_record(FLEETS, PID).write("batch", hosts=["a"])
    (file,) = record.list_records("prod")
    with file.open("a") as opened:
        opened.write('{"at": 1, "event": "ba')
    assert names(file) == ["run", "batch"]
    open_record(FLEETS, PID).write("ended", state="done")
    assert names(file) == ["run", "batch", "ended"]


@pytest.mark.parametrize(
    ("line", "place"),
    [('{"at": 1, "event": "ba', 2), ('{"at": 1, "event": "party"}', 2), ('{"at": 1, "event": "batch"}', 2), ("[]", 2)],
)
def test_what_is_no_event_is_refused_with_its_line(line: str, place: int) -> None:
    opened = open_record(FLEETS, PID)
    (file,) = record.list_records("prod")
    file.write_text(f"{file.read_text()}{line}\n")
    opened.write("ended", state="done")
    with pytest.raises(FleetError, match="is no record of a rollout") as fault:
        read_record(file)
    assert fault.value.line == place


@pytest.mark.parametrize("data", [b"", b"\xff\n", b'{"at": 1, "event": "left", "hosts": []}\n'])
def test_what_does_not_begin_as_a_record_is_refused(state: Path, data: bytes) -> None:
    state.mkdir(parents=True)
    (state / "x.jsonl").write_bytes(data)
    with pytest.raises(FleetError, match="is no record of a rollout"):
        read_record(state / "x.jsonl")
    with pytest.raises(FleetError, match="is no record of a rollout"):
        read_record(state / "none.jsonl")


def test_the_newest_records_are_kept_with_their_reports(state: Path) -> None:
    state.mkdir(parents=True)
    for number in range(record.KEPT + 5):
        for suffix in (".jsonl", ".html"):
            (state / f"20200101T0000{number:02d}Z-1{suffix}").write_text("")
    open_record(FLEETS, PID)
    kept = record.list_records("prod")
    assert len(kept) == record.KEPT
    assert kept[0].name.endswith(f"-{PID}.jsonl")
    assert len(list(state.glob("*.html"))) == record.KEPT - 1


def test_a_record_that_cannot_be_begun_is_told_before_anything_is_touched(tmp_path: Path) -> None:
    (tmp_path / "prod").write_text("no folder")
    with pytest.raises(FleetError, match="cannot keep the record of the rollout"):
        open_record(FLEETS, PID)


def test_a_record_has_its_first_line_or_is_not_there(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later rollouts look for what the newest one has left, and refuse a file that is no record."""

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(atomic_files.os, "fsync", fail)
        with pytest.raises(FleetError, match="cannot keep the record of the rollout: No space left on device"):
            open_record(FLEETS, PID)
    assert list(state.iterdir()) == []
    assert record.find_unfinished("prod") is None


def test_a_rollout_goes_on_without_a_record_that_cannot_be_written_any_more(state: Path) -> None:
    opened = open_record(FLEETS, PID)
    (file,) = state.iterdir()
    file.unlink()
    file.mkdir()
    opened.write("batch", hosts=["a"])
    assert "cannot be written" in opened.fault


def test_the_lines_of_many_processes_do_not_mix(state: Path) -> None:
    open_record(FLEETS, PID)
    (file,) = state.iterdir()
    code = (
        "import sys, pathlib; from vllm_fleet.operate.rollout.record import Record\n"
        "opened = Record({'a': pathlib.Path(sys.argv[1])})\n"
        "for number in range(50): opened.write('release', host='a', old='', new=sys.argv[2], lines=['x' * 9000])"
    )
    words = [[sys.executable, "-c", code, str(file), str(number)] for number in range(3)]
    writers = [subprocess.Popen(each, cwd=paths.root()) for each in words]
    assert [writer.wait(timeout=HANGING_SECONDS) for writer in writers] == [0, 0, 0]
    assert len(read_record(file)) == 151


def test_values_that_are_secrets_by_their_name_are_no_part_of_a_record() -> None:
    kept = ["--- 0.env", "+max-num-batched-tokens: 8192", '+A="b"', "+- a name"]
    secret = ['+HF_TOKEN="hf_x"', "-api-key: abc", "+  - token: abc", '-  "HF_TOKEN": abc']
    masked = ["+HF_TOKEN=…", "-api-key: …", "+  - token: …", '-  "HF_TOKEN": …']
    assert record.mask_secrets([*kept, *secret]) == [*kept, *masked]


def finished(state: Path, name: str, *events: dict[str, Any], owner: str = "", **run: Any) -> Path:
    state.mkdir(parents=True, exist_ok=True)
    file = state / f"{name}.jsonl"
    opened = Record({"a": file})
    dead = run_owner.name_run(PID).replace("started ", "started 1")
    opened.write(
        "run", **{"owner": owner or dead, "fleet": "prod", "kind": "rollout", "check": False, **run}, hosts=["a"]
    )
    for event in events:
        opened.write(**event)
    return file


def test_a_run_that_did_not_come_to_its_end_is_found(state: Path) -> None:
    assert record.find_unfinished("prod") is None
    killed = finished(state, "1", {"event": "batch", "hosts": ["a"]})
    finished(state, "2", check=True)
    finished(state, "3", kind="rollback")
    found = record.find_unfinished("prod")
    assert found
    assert found[0] == killed
    paused = finished(state, "4", {"event": "ended", "state": "paused"})
    found = record.find_unfinished("prod")
    assert found
    assert found[0] == paused
    finished(state, "5", {"event": "ended", "state": "done"})
    assert record.find_unfinished("prod") is None
    finished(state, "6", owner=run_owner.name_run(PID))
    assert record.find_unfinished("prod") is None, "it works still"


def test_a_damaged_record_stops_no_rollout(state: Path) -> None:
    file = finished(state, "1")
    file.write_text("not a record\n")
    assert "cannot tell what it resumes: " in find_resumed("prod")
    assert file.name in find_resumed("prod")


def test_the_hosts_that_a_run_leaves_are_known_to_its_processes_alone() -> None:
    open_record(FLEETS, PID).write("left", hosts=["b"])
    assert record.find_left_hosts("prod", PID) == {"b"}
    assert record.find_left_hosts("prod", PID + 1) == frozenset()
    assert record.find_left_hosts("rack", PID) == frozenset()
