"""Two runs that write the same files of a checkout: one after the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools import alone
from vllm_fleet.base import paths

#: Fails if another one is between its two lines.
WORK = "set -e; mkdir {0}; read -t 0.3 <> <(:) || true; rmdir {0}"


def test_two_runs_of_one_name_do_not_meet(tmp_path: Path) -> None:
    work = WORK.format(tmp_path / "in-progress")
    command = [sys.executable, "-m", "tools.alone", "test-alone", "bash", "-c", work]
    runs = [subprocess.Popen(command, cwd=paths.root()) for _ in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0]


def test_the_exit_code_is_that_of_the_command() -> None:
    assert alone.run_alone("test-alone", ["bash", "-c", "exit 7"]) == 7
