"""The module host_files on this machine: content, mode, directories, check mode, and when systemd reads its units."""

from __future__ import annotations

import getpass
import grp
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from run_module import run_module

OWN = {"owner": getpass.getuser(), "group": grp.getgrgid(os.getgid()).gr_name}


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder with a systemctl that writes down what it is asked, and answers what is in the file ``reads``."""
    folder = tmp_path / "commands"
    folder.mkdir()
    program = folder / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\ncat {tmp_path}/reads 2>/dev/null || true\n')
    program.chmod(0o755)
    return folder


def run(commands: Path, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
    return run_module("host_files", commands.parent, arguments, check=check, path=commands)


def asked(commands: Path) -> list[str]:
    file = commands.parent / "asked"
    return file.read_text().splitlines() if file.exists() else []


def test_files_and_directories_are_written_once_with_their_modes(tmp_path: Path, commands: Path) -> None:
    place = tmp_path / "new"
    rows = {
        "directories": [{"path": str(place), "mode": "0750", **OWN}],
        "files": [{"path": str(place / "a"), "content": "one\n", "mode": "0640", **OWN}],
    }
    first = run(commands, **rows)
    assert (first["changed"], first["written"]) == (True, [str(place), str(place / "a")])
    assert (place / "a").read_text() == "one\n"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (place, place / "a")] == [0o750, 0o640]
    assert first["diff"][0]["after"] == "one\n"
    again = run(commands, **rows)
    assert (again["changed"], again["written"], again["reloaded"]) == (False, [], False)
    (place / "a").chmod(0o644)
    assert run(commands, **rows)["written"] == [str(place / "a")]
    assert stat.S_IMODE((place / "a").stat().st_mode) == 0o640


def test_check_mode_tells_and_writes_nothing(tmp_path: Path, commands: Path) -> None:
    place = tmp_path / "new"
    rows = {"directories": [{"path": str(place), **OWN}], "files": [{"path": str(place / "a"), "content": "b", **OWN}]}
    told = run(commands, check=True, **rows)
    assert (told["changed"], told["written"]) == (True, [str(place), str(place / "a")])
    assert not place.exists()


@pytest.mark.parametrize(("reads", "reloaded"), [("no\nno\n", False), ("no\nyes\n", True)])
def test_systemd_reads_its_units_again_only_if_it_must(
    tmp_path: Path, commands: Path, reads: str, reloaded: bool
) -> None:
    (tmp_path / "reads").write_text(reads)
    told = run(commands, files=[{"path": str(tmp_path / "a"), "content": "", **OWN}], units=["vllm@*"])
    assert told["reloaded"] is reloaded
    assert ("daemon-reload" in asked(commands)) is reloaded
    assert "show --value --property=NeedDaemonReload vllm@*" in asked(commands)


def test_what_is_no_file_or_no_directory_is_an_error(tmp_path: Path, commands: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    told = run(commands, files=[{"path": str(tmp_path / "link"), "content": "x", **OWN}])
    assert "link is no file: remove it, and run again" in told["msg"]
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "file").touch()
    told = run(commands, directories=[{"path": str(tmp_path / "file"), **OWN}])
    assert "file is no directory: remove it, and run again" in told["msg"]
