from __future__ import annotations

import hashlib
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_fleet.on_host import probe

ME = pwd.getpwuid(os.getuid()).pw_name


def item(**values: Any) -> dict[str, Any]:
    return {"role": "r", **values}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("content", encoding="utf-8")
    path.chmod(0o640)
    return path


def wanted(at: Path, **changes: Any) -> dict[str, Any]:
    digest = hashlib.sha256(b"content").hexdigest()
    return item(**{"kind": "file", "path": str(at), "sha256": digest, "mode": "0640", "owner": ME, **changes})


def test_a_file_as_planned_is_no_drift(file: Path) -> None:
    assert probe.check_file(wanted(file)) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"sha256": "0" * 64}, "content differs"),
        ({"mode": "0600"}, "mode is 0640, not 0600"),
        ({"owner": "nobody-else"}, "owner is "),
        ({"path": "/nowhere/at/all"}, "is missing"),
        ({"path": "/"}, "is not a regular file"),
    ],
)
def test_a_file_that_differs(file: Path, changes: dict[str, str], why: str) -> None:
    assert why in str(probe.check_file(wanted(file, **changes)))


def test_a_link_to_a_file_is_not_the_file(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    assert probe.check_file(wanted(link)) == "is not a regular file"


def test_links(tmp_path: Path) -> None:
    link = tmp_path / "current"
    wish = item(kind="link", path=str(link), target="releases/a")
    assert probe.check_link(wish) == "is missing"
    link.symlink_to("releases/b")
    assert probe.check_link(wish) == "points to releases/b, not releases/a"
    link.unlink()
    link.symlink_to("releases/a")
    assert probe.check_link(wish) == "points to nothing"
    (tmp_path / "releases" / "a").mkdir(parents=True)
    assert probe.check_link(wish) is None
    assert probe.check_link(item(kind="link", path=str(tmp_path), target="x")) == "is not a link"


def test_directories(tmp_path: Path, file: Path) -> None:
    tmp_path.chmod(0o750)
    assert probe.check_directory(item(path=str(tmp_path), mode="0750", owner=ME)) is None
    assert probe.check_directory(item(path=str(tmp_path), mode="0700")) == "mode is 0750, not 0700"
    assert probe.check_directory(item(path=str(file))) == "is not a directory"
    assert probe.check_directory(item(path="/nowhere")) == "is missing"


def test_a_store_is_trusted_as_long_as_its_files_have_not_changed(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_text("1", encoding="utf-8")
    wish = item(kind="store", path=str(tmp_path), stamp="stamp", files={"weights": "d1"})
    assert probe.check_store(wish) == "is not complete"
    info = weights.stat()
    stamp = {"weights": {"sha256": "d1", "size": info.st_size, "mtime_ns": info.st_mtime_ns}}
    (tmp_path / "stamp").write_text(json.dumps(stamp), encoding="utf-8")
    assert probe.check_store(wish) is None
    assert "is not the file that was verified" in str(probe.check_store({**wish, "files": {"weights": "d2"}}))
    weights.write_text("2", encoding="utf-8")
    assert "was changed after it was verified" in str(probe.check_store(wish))
    weights.unlink()
    assert "is missing" in str(probe.check_store(wish))


def test_users() -> None:
    entry = pwd.getpwuid(os.getuid())
    assert probe.check_user(item(name=ME, home=entry.pw_dir, shell=entry.pw_shell)) is None
    assert "home is" in str(probe.check_user(item(name=ME, home="/elsewhere")))
    assert probe.check_user(item(name="no-such-user")) == "does not exist"


def test_kernel_parameters() -> None:
    value = " ".join(Path("/proc/sys/kernel/ostype").read_text(encoding="utf-8").split())
    assert probe.check_sysctl(item(name="kernel.ostype", value=value)) is None
    assert probe.check_sysctl(item(name="kernel.ostype", value="x")) == f"is {value}, not x"
    assert probe.check_sysctl(item(name="kernel.no_such", value="x")) == "does not exist"


@pytest.mark.parametrize(
    ("state", "wish", "why"),
    [
        ({"LoadState": "not-found"}, {}, "is not known to systemd"),
        ({"LoadState": "loaded", "NeedDaemonReload": "yes"}, {}, "was changed on disk since systemd read it"),
        (
            {"LoadState": "loaded", "ActiveState": "failed", "SubState": "failed"},
            {"active": True},
            "is failed (failed)",
        ),
        ({"LoadState": "loaded", "UnitFileState": "disabled"}, {"enabled": True}, "is disabled"),
        ({"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled"}, {"active": True}, None),
    ],
)
def test_units(state: dict[str, str], wish: dict[str, bool], why: str | None) -> None:
    assert probe.check_unit(item(name="u", **wish), {"u": state}) == why


def test_facts_veto() -> None:
    assert probe.check_facts({"cpu_count_min": 1, "memory_gib_min": 0.1, "machine": os.uname().machine}) == []
    faults = probe.check_facts({"cpu_count_min": 9999, "memory_gib_min": 1e6, "machine": "pdp11"})
    assert len(faults) == 3


def test_it_runs_as_source_with_the_standard_library_alone(file: Path) -> None:
    manifest = {"items": [wanted(file, mode="0600")], "facts": {}}
    source = Path(probe.__file__).read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-IS", "-c", source], input=json.dumps(manifest), capture_output=True, text=True, check=True
    )
    drift = json.loads(done.stdout)["drift"]
    assert drift == [{"role": "r", "kind": "file", "what": str(file), "why": "mode is 0640, not 0600"}]
