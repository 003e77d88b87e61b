"""One run at a time changes a fleet: the lock, its owner, and a run that has died."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.operate import run_lock, run_owner


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    return tmp_path / ".fleet" / "prod"


def test_a_run_takes_the_lock_again_and_another_one_does_not_get_it(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        run_lock.take("prod", other.pid)
        run_lock.take("prod", other.pid)
        with pytest.raises(FleetError) as fault:
            run_lock.take("prod", os.getpid())
        assert f"another run works on the fleet prod: {run_owner.name_run(other.pid)}, for 0 s" in str(fault.value)
        assert fault.value.exit_code == 2
        run_lock.take("another", os.getpid())
        other.communicate(b"\n")
    run_lock.take("prod", os.getpid())
    assert json.loads((folder / "run.lock").read_text())["owner"] == run_owner.name_run(os.getpid())


def test_a_run_of_another_machine_counts_as_living(folder: Path) -> None:
    folder.mkdir(parents=True)
    record = {"owner": "alice@elsewhere (process 1, started 1)", "since": time.time() - 7200}
    (folder / "run.lock").write_text(json.dumps(record))
    with pytest.raises(FleetError, match=r"alice@elsewhere \(process 1, started 1\), for 120 min"):
        run_lock.take("prod", os.getpid())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"owner": 1}'])
def test_a_lock_that_cannot_be_read_is_taken(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "run.lock").write_text(text)
    run_lock.take("prod", os.getpid())
    assert json.loads((folder / "run.lock").read_text())["owner"] == run_owner.name_run(os.getpid())


def test_a_process_with_the_number_of_a_dead_run_is_another_run() -> None:
    mine = run_owner.name_run(os.getpid())
    assert not run_owner.is_gone(mine)
    assert run_owner.is_gone(mine.replace("started ", "started 9"))
    assert not run_owner.is_gone("a name that no run has")
