"""The module that verifies files: what it stamps, what it refuses, and that check mode touches nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from run_module import run_module

from vllm_fleet.host.manifest_items import store_item
from vllm_fleet.on_host import probe


def run(folder: Path, files: dict[str, str], *, check: bool = False) -> dict[str, Any]:
    arguments = {
        "path": str(folder),
        "files": [{"name": name, "sha256": digest} for name, digest in files.items()],
    }
    return run_module("verified_store", folder, arguments, check=check)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_text("w", encoding="utf-8")
    return tmp_path


def test_what_it_stamps_is_what_the_probe_trusts(folder: Path) -> None:
    files = {"weights": sha256("w")}
    item = store_item("model_store", str(folder), ".verified.json", files)
    assert probe.check_store(item) == ("incomplete", "is not complete")
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


@pytest.mark.parametrize("stamp", ["[]", "null", "7", '{"weights": null}', '{"weights": [1]}', "{", "\x00"])
def test_an_odd_stamp_is_no_stamp(folder: Path, stamp: str) -> None:
    (folder / ".verified.json").write_text(stamp, encoding="utf-8")
    files = {"weights": sha256("w")}
    item = store_item("model_store", str(folder), ".verified.json", files)
    difference = probe.check_store(item)
    assert difference is not None
    assert difference[0] in ("incomplete", "unverified")
    assert run(folder, files)["changed"] is True
    assert probe.check_store(item) is None
