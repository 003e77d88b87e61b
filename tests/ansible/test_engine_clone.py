"""The module that begins an engine: which neighbour it clones, what it leaves out; check mode makes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_module import run_module

CONFIG = "home = /usr/bin\nversion_info = {}.2\nrelocatable = {}\n"


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    (tmp_path / "engines" / "locks").mkdir(parents=True)
    return tmp_path / "engines"


def lock(engines: Path, name: str, **pins: str) -> None:
    """A lock: package -> version and the first digits of its digests."""
    lines = []
    for package, text in pins.items():
        version, *digits = text.split()
        lines += [f"{package}=={version} \\", *(f"    --hash=sha256:{digit * 64} \\" for digit in digits)]
    (engines / "locks" / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")


def engine(engines: Path, name: str, python: str = "3.11", relocatable: str = "true", complete: bool = True) -> Path:
    folder = engines / name
    packages = folder / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text(CONFIG.format(python, relocatable), encoding="utf-8")
    (packages / "a.py").write_text(name, encoding="utf-8")
    (folder / "python").symlink_to("/usr/bin/python3")
    for package, by in (("a-1", "uv"), ("vllm-1", "vllm-fleet")):
        (packages / f"{package}.dist-info").mkdir()
        (packages / f"{package}.dist-info" / "INSTALLER").write_text(by, encoding="utf-8")
    if complete:
        (folder / ".complete").write_text(name, encoding="utf-8")
    return folder


def run(engines: Path, name: str = "new", *, check: bool = False) -> dict[str, Any]:
    arguments = {
        "path": str(engines / name),
        "lock": str(engines / "locks" / f"{name}.txt"),
        "locks": str(engines / "locks"),
        "python": "3.11",
    }
    return run_module("engine_clone", engines, arguments, check=check)


def test_the_neighbour_with_most_packages_in_common_is_cloned(engines: Path) -> None:
    for name, pins in (("far", {"a": "1 1"}), ("near", {"a": "1 1", "b": "1 2"}), ("other", {"c": "1 3"})):
        engine(engines, name)
        lock(engines, name, **pins)
    lock(engines, "new", a="1 1", b="1 2", c="2 4")
    found = run(engines)
    assert (found["changed"], found["source"], found["reinstall"]) == (True, str(engines / "near"), [])
    packages = Path("lib/python3.11/site-packages")
    assert (engines / "new" / packages / "a.py").samefile(engines / "near" / packages / "a.py")
    assert (engines / "new" / "python").is_symlink()
    assert sorted(path.name for path in (engines / "new" / packages).iterdir()) == ["a-1.dist-info", "a.py"]
    assert not (engines / "new" / ".complete").exists()
    assert (engines / "near" / ".complete").exists()
    assert (engines / "near" / packages / "vllm-1.dist-info").is_dir()


@pytest.mark.parametrize("wrong", [{"python": "3.12"}, {"relocatable": "false"}, {"complete": False}])
def test_what_cannot_be_cloned_is_not(engines: Path, wrong: dict[str, Any]) -> None:
    engine(engines, "old", **wrong)
    lock(engines, "old", a="1 1")
    lock(engines, "new", a="1 1")
    found = run(engines)
    assert (found["changed"], found["source"]) == (False, "")
    assert not (engines / "new").exists()


def test_without_a_package_in_common_nothing_is_cloned(engines: Path) -> None:
    engine(engines, "old")
    lock(engines, "old", a="1 1")
    lock(engines, "new", a="1 2", b="1 1")
    assert run(engines)["source"] == ""


def test_files_that_the_new_lock_does_not_take_are_installed_again(engines: Path) -> None:
    engine(engines, "old")
    lock(engines, "old", a="1 1", b="1 2 3", c="1 4")
    lock(engines, "new", a="1 1 5", b="1 2", c="1 6")
    assert run(engines)["reinstall"] == ["b", "c"]


def test_a_clone_that_was_cut_off_is_begun_again(engines: Path) -> None:
    engine(engines, "old")
    lock(engines, "old", a="1 1")
    lock(engines, "new", a="1 1")
    (engines / ".new").mkdir()
    (engines / ".new" / "rest").touch()
    assert run(engines)["changed"]
    assert not (engines / "new" / "rest").exists()
    assert not (engines / ".new").exists()


def test_check_mode_makes_nothing(engines: Path) -> None:
    engine(engines, "old")
    lock(engines, "old", a="1 1")
    lock(engines, "new", a="1 1")
    assert run(engines, check=True)["changed"]
    assert not (engines / "new").exists()


def test_a_directory_that_is_there_is_left_alone(engines: Path) -> None:
    engine(engines, "new")
    lock(engines, "new", a="1 1")
    assert run(engines)["failed"]
