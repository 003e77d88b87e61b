"""How the tests are run: signs of life, and programs of the environment without ``. ./activate``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_fleet.base.paths import root

pytestmark = pytest.mark.slow  # each starts a pytest of its own


def run_pytest(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs one test file with this project's conftest, in an environment that nobody has activated."""
    (folder / "test_one.py").write_text(text, encoding="utf-8")
    (folder / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    root: x\n    e2e: x\n    network: x\n", encoding="utf-8"
    )
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": os.environ.get("HOME", "/"),
        "PYTHONPATH": os.pathsep.join((str(root() / "tests"), str(root()))),
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", *options, "test_one.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_long_test_is_named_while_it_runs(tmp_path: Path) -> None:
    text = "import time\n\ndef test_sleeps():\n    time.sleep(3)\n"
    done = run_pytest(tmp_path, text, "-n", "1", "--heartbeat", "0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 tests done; running: test_one.py::test_sleeps (" in done.stdout


def test_without_the_option_nothing_is_added(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "def test_passes():\n    pass\n", "-n", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests done" not in done.stdout


def test_programs_of_the_environment_are_found_without_activate(tmp_path: Path) -> None:
    text = (
        "import os, pathlib, shutil, sys\n\n"
        "def test_environment():\n"
        "    assert pathlib.Path(shutil.which('ansible-playbook')).parent == pathlib.Path(sys.executable).parent\n"
        f"    assert os.environ['ANSIBLE_CONFIG'] == {str(root() / 'ansible.cfg')!r}\n"
    )
    done = run_pytest(tmp_path, text)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_takes_longest_comes_first(tmp_path: Path) -> None:
    text = (
        "import os, pytest\n\n"
        "def test_plain():\n    pass\n\n"
        "@pytest.mark.network\ndef test_network():\n    pass\n\n"
        "@pytest.mark.e2e\ndef test_lab():\n    pass\n"
    )
    done = run_pytest(tmp_path, text, "--collect-only")
    names = [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]
    assert names == ["test_lab", "test_network", "test_plain"], done.stdout + done.stderr
