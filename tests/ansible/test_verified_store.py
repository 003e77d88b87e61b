"""The one custom module: what it stamps, what it refuses, and that check mode touches nothing."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_fleet.base import paths
from vllm_fleet.on_host import probe

MODULE = paths.root() / "plugins" / "modules" / "verified_store.py"


def run(folder: Path, files: dict[str, str], *, check: bool = False) -> dict[str, Any]:
    arguments = {
        "path": str(folder),
        "files": [{"name": name, "sha256": digest} for name, digest in files.items()],
        "_ansible_check_mode": check,
        "_ansible_remote_tmp": str(folder),
    }
    code = (
        "import sys, runpy; from ansible.module_utils import basic;"
        "basic._ANSIBLE_ARGS = sys.argv[1].encode(); basic._ANSIBLE_PROFILE = 'legacy';"
        f"runpy.run_path({str(MODULE)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps({"ANSIBLE_MODULE_ARGS": arguments})],
        capture_output=True,
        text=True,
        check=False,
    )
    return dict(json.loads(done.stdout))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_text("w", encoding="utf-8")
    return tmp_path


def test_what_it_stamps_is_what_the_probe_trusts(folder: Path) -> None:
    files = {"weights": sha256("w")}
    item = {"path": str(folder), "stamp": ".verified.json", "files": files}
    assert probe.check_store(item) == "is not complete"
    first = run(folder, files)
    assert (first["changed"], first["verified"]) == (True, ["weights"])
    assert probe.check_store(item) is None
    again = run(folder, files)
    assert (again["changed"], again["verified"]) == (False, [])


def test_a_wrong_file_is_refused_and_not_stamped(folder: Path) -> None:
    result = run(folder, {"weights": sha256("x")})
    assert result["failed"] is True
    assert "has the SHA-256" in result["msg"]
    assert not (folder / ".verified.json").exists()


def test_a_missing_file_is_refused(folder: Path) -> None:
    assert "is missing" in run(folder, {"other": sha256("x")})["msg"]


def test_check_mode_touches_nothing(folder: Path) -> None:
    assert run(folder, {"weights": sha256("w")}, check=True)["changed"] is True
    assert not (folder / ".verified.json").exists()
