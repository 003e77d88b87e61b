"""The module that removes old releases: which stay, and that check mode removes none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from run_module import run_module


@pytest.fixture
def releases(tmp_path: Path) -> Path:
    """Five releases, the first the oldest, with a file and a link beside them."""
    folder = tmp_path / "releases"
    for age, name in enumerate("abcde"):
        (folder / name).mkdir(parents=True)
        (folder / name / "0.env").touch()
        os.utime(folder / name, (age, age))
    (folder / "note").touch()
    (folder / "link").symlink_to("a")
    return folder


def clean(releases: Path, current: str, kept: int = 3, *, check: bool = False) -> dict[str, Any]:
    arguments = {"path": str(releases), "current": current, "kept": kept}
    return run_module("newest_directories", releases.parent, arguments, check=check)


def names(releases: Path) -> list[str]:
    return sorted(entry.name for entry in releases.iterdir())


@pytest.mark.parametrize(
    ("current", "kept", "stay"), [("e", 3, "cde"), ("a", 3, "ade"), ("c", 1, "c"), ("e", 9, "abcde"), ("x", 3, "de")]
)
def test_the_current_one_and_the_newest_others_stay(releases: Path, current: str, kept: int, stay: str) -> None:
    result = clean(releases, current, kept)
    assert names(releases) == sorted([*stay, "note", "link"])
    assert result["changed"] is (len(stay) < 5)
    assert {Path(folder).name for folder in result["removed"]} == set("abcde") - set(stay)
    assert clean(releases, current, kept)["changed"] is False


def test_check_mode_removes_nothing_and_names_what_would_go(releases: Path) -> None:
    result = clean(releases, "e", check=True)
    assert (result["changed"], len(names(releases))) == (True, 7)
    assert result["diff"]["before"] == f"{releases / 'a'}\n{releases / 'b'}\n"


def test_a_folder_that_does_not_exist_has_none(tmp_path: Path) -> None:
    assert clean(tmp_path / "releases", "a")["changed"] is False
