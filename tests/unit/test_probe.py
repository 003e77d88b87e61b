from __future__ import annotations

import ast
import grp
import hashlib
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_fleet.edge import ssh
from vllm_fleet.host.manifest_items import absent_item
from vllm_fleet.on_host import host_record, probe

ME = pwd.getpwuid(os.getuid()).pw_name
MY_GROUP = grp.getgrgid(os.getgid()).gr_name


def item(**values: Any) -> Any:
    return {"role": "r", **values}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("content", encoding="utf-8")
    path.chmod(0o640)
    return path


def wanted(at: Path, **changes: Any) -> Any:
    digest = hashlib.sha256(b"content").hexdigest()
    return item(**{"kind": "file", "path": str(at), "sha256": digest, "mode": "0640", "owner": ME, **changes})


def test_a_file_as_planned_is_no_drift(file: Path) -> None:
    assert probe.check_file(wanted(file)) is None


@pytest.mark.parametrize(
    ("changes", "state", "why"),
    [
        ({"sha256": "0" * 64}, "wrong_content", "content differs"),
        ({"mode": "0600"}, "wrong_mode", "mode is 0640, not 0600"),
        ({"owner": "nobody-else"}, "wrong_owner", f"owner is {ME}, not nobody-else"),
        ({"group": "nobody-else"}, "wrong_group", f"group is {MY_GROUP}, not nobody-else"),
        ({"path": "/nowhere/at/all"}, "missing", "is missing"),
        ({"path": "/"}, "wrong_type", "is not a regular file"),
    ],
)
def test_a_file_that_differs(file: Path, changes: dict[str, str], state: str, why: str) -> None:
    assert probe.check_file(wanted(file, **changes)) == (state, why)


def test_what_the_plan_does_not_have_any_more_is_drift(file: Path, tmp_path: Path) -> None:
    item = absent_item("gateway", str(file))
    assert probe.check_file(item) == ("unwanted", "is there, and the plan does not have it any more")
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    assert probe.check_file(absent_item("gateway", str(link))) is not None
    file.unlink()
    assert probe.check_file(item) is None
    assert host_record.key_of(item) == ""


def test_a_link_to_a_file_is_not_the_file(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    assert probe.check_file(wanted(link)) == ("wrong_type", "is not a regular file")


def test_links(tmp_path: Path) -> None:
    link = tmp_path / "current"
    wish = item(kind="link", path=str(link), target="releases/a")
    assert probe.check_link(wish) == ("missing", "is missing")
    link.symlink_to("releases/b")
    assert probe.check_link(wish) == ("wrong_target", "points to releases/b, not releases/a")
    link.unlink()
    link.symlink_to("releases/a")
    assert probe.check_link(wish) == ("dangling", "points to nothing")
    (tmp_path / "releases" / "a").mkdir(parents=True)
    assert probe.check_link(wish) is None
    assert probe.check_link(item(kind="link", path=str(tmp_path), target="x")) == ("wrong_type", "is not a link")


def test_directories(tmp_path: Path, file: Path) -> None:
    tmp_path.chmod(0o750)
    assert probe.check_directory(item(path=str(tmp_path), mode="0750", owner=ME)) is None
    assert probe.check_directory(item(path=str(tmp_path), mode="0700")) == ("wrong_mode", "mode is 0750, not 0700")
    assert probe.check_directory(item(path=str(file))) == ("wrong_type", "is not a directory")
    assert probe.check_directory(item(path="/nowhere")) == ("missing", "is missing")


def test_a_store_is_trusted_as_long_as_its_files_have_not_changed(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_text("1", encoding="utf-8")
    wish = item(kind="store", path=str(tmp_path), stamp="stamp", files={"weights": "d1"})
    assert probe.check_store(wish) == ("incomplete", "is not complete")
    info = weights.stat()
    stamp = {"weights": {"sha256": "d1", "size": info.st_size, "mtime_ns": info.st_mtime_ns}}
    (tmp_path / "stamp").write_text(json.dumps(stamp), encoding="utf-8")
    assert probe.check_store(wish) is None
    assert probe.check_store({**wish, "files": {"weights": "d2"}}) == (
        "unverified",
        "weights is not the file that was verified",
    )
    weights.write_text("2", encoding="utf-8")
    assert probe.check_store(wish) == ("file_changed", "weights was changed after it was verified")
    weights.unlink()
    assert probe.check_store(wish) == ("file_missing", "weights is missing")


def test_users() -> None:
    entry = pwd.getpwuid(os.getuid())
    assert probe.check_user(item(name=ME, home=entry.pw_dir, shell=entry.pw_shell)) is None
    home, shell = item(name=ME, home="/elsewhere"), item(**{"name": ME, "shell": "/bin/other"})
    assert probe.check_user(home) == ("wrong_home", f"home is {entry.pw_dir}, not /elsewhere")
    assert probe.check_user(shell) == ("wrong_shell", f"shell is {entry.pw_shell}, not /bin/other")
    assert probe.check_user(item(name=ME, groups=["no-such-group"])) == ("not_in_group", "is not in no-such-group")
    assert probe.check_user(item(name="no-such-user")) == ("missing", "is missing")


def test_kernel_parameters() -> None:
    value = " ".join(Path("/proc/sys/kernel/ostype").read_text(encoding="utf-8").split())
    assert probe.check_sysctl(item(name="kernel.ostype", value=value)) is None
    assert probe.check_sysctl(item(name="kernel.ostype", value="x")) == ("wrong_value", f"is {value}, not x")
    assert probe.check_sysctl(item(name="kernel.no_such", value="x")) == ("missing", "is missing")


@pytest.mark.parametrize(
    ("properties", "wish", "difference"),
    [
        ({"LoadState": "not-found"}, {}, ("unknown_unit", "is not known to systemd")),
        (
            {"LoadState": "loaded", "NeedDaemonReload": "yes"},
            {},
            ("not_reloaded", "was changed on disk since systemd read it"),
        ),
        (
            {"LoadState": "loaded", "ActiveState": "failed", "SubState": "failed"},
            {"active": True},
            ("failed", "is failed (failed)"),
        ),
        (
            {"LoadState": "loaded", "ActiveState": "inactive", "SubState": "dead"},
            {"active": True},
            ("inactive", "is inactive (dead)"),
        ),
        (
            {"LoadState": "loaded", "ActiveState": "activating", "SubState": "start-pre"},
            {"active": True},
            ("in_transition", "is activating (start-pre)"),
        ),
        (
            {"LoadState": "loaded", "ActiveState": "active", "SubState": "running"},
            {"active": False},
            ("active", "is active (running)"),
        ),
        (
            {
                "LoadState": "loaded",
                "DropInPaths": "/etc/u.d/own.conf /usr/lib/u.d/a.conf /run/u.d/z.conf /etc/u.d/y.conf",
            },
            {"files": ["/etc/u.d/own.conf"]},
            ("foreign_unit_file", "is changed by /etc/u.d/y.conf, /run/u.d/z.conf"),
        ),
        # As "systemctl edit --full u@0" leaves it.
        (
            {"LoadState": "loaded", "FragmentPath": "/etc/u@0.service"},
            {"files": ["/etc/u@.service"]},
            ("foreign_unit_file", "is changed by /etc/u@0.service"),
        ),
        ({"LoadState": "loaded", "FragmentPath": "/lib/systemd/system/u.service"}, {"files": []}, None),
        # systemd separates paths by blanks, and a name may hold one.
        (
            {"LoadState": "loaded", "DropInPaths": "/etc/u.d/own.conf and.conf"},
            {"files": ["/etc/u.d/own.conf"]},
            ("foreign_unit_file", "is changed by and.conf"),
        ),
        ({"LoadState": "loaded", "DropInPaths": "/etc/u.d/own.conf"}, {"files": ["/etc/u.d/own.conf"]}, None),
        ({"LoadState": "loaded", "DropInPaths": "/etc/u.d/any.conf"}, {}, None),
        ({"LoadState": "loaded", "UnitFileState": "disabled"}, {"enabled": True}, ("not_enabled", "is disabled")),
        ({"LoadState": "loaded", "UnitFileState": ""}, {"enabled": True}, ("not_enabled", "is not enabled")),
        ({"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled"}, {"active": True}, None),
    ],
)
def test_units(properties: dict[str, str], wish: dict[str, bool], difference: tuple[str, str] | None) -> None:
    assert probe.check_unit(item(name="u", **wish), {"u": properties}) == difference


def test_facts_veto() -> None:
    assert probe.check_facts({"cpu_count_min": 1, "memory_gib_min": 0.1, "machine": os.uname().machine}) == []
    faults = probe.check_facts(
        {"cpu_count_min": 9999, "cpu_flags": ["teleport"], "memory_gib_min": 1e6, "machine": "pdp11"}
    )
    assert [fault["code"] for fault in faults] == ["too_few_cores", "no_cpu_flag", "too_little_memory", "wrong_machine"]
    assert "lacks teleport" in faults[1]["why"]
    assert faults[3]["why"] == f"is {os.uname().machine}, its class is pdp11"


def test_it_runs_as_source_with_the_standard_library_alone(file: Path) -> None:
    manifest = {"items": [wanted(file, mode="0600")], "facts": {}}
    source = ssh.pack_program("probe", "docker_engine", "neighbours")
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -IS -c {source}"],
        input=json.dumps(manifest),
        capture_output=True,
        text=True,
        check=True,
    )
    drift = json.loads(done.stdout)["drift"]
    assert drift == [
        {"role": "r", "kind": "file", "what": str(file), "state": "wrong_mode", "why": "mode is 0640, not 0600"}
    ]


def test_every_program_that_is_sent_to_hosts_is_there_and_python_3_8_reads_it() -> None:
    folder = Path(probe.__file__).parent
    called: set[str] = set()
    for path in folder.parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "pack_program":
                called |= {str(word.value) for word in node.args if isinstance(word, ast.Constant)}
    assert called == {
        *("probe", "gpu_facts", "ssh_host_key", "host_record", "host_apply", "host_leave"),
        *("docker_engine", "neighbours", "gates", "run_worker", "start_cache"),
    }
    for path in folder.glob("*.py"):
        name, source = path.stem, path.read_text(encoding="utf-8")
        ast.parse(source, feature_version=(3, 8))
        imported = {
            (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else node.names[0].name.split(".")[0]
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert imported - {"__future__", "vllm_fleet"} <= set(sys.stdlib_module_names), name


def test_what_is_sent_to_hosts_stays_small() -> None:
    sent = ("probe", "docker_engine", "neighbours")
    assert len(ssh.pack_program(*sent)) < 22000
    assert len(ssh.pack_program(*sent, "gpu_facts")) < 44000


def test_a_host_of_a_system_that_the_roles_do_not_support_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rocky Linux has no apt: a role would fail halfway, after others had changed the host."""
    monkeypatch.setattr(probe, "read_system", lambda: "rocky-9.4")
    (fault,) = probe.check_facts({"systems": ["debian-12", "ubuntu-24.04"]})
    assert fault["code"] == "wrong_system"
    assert fault["why"] == "has rocky-9.4, and the roles support debian-12, ubuntu-24.04: use one of those"
    assert probe.check_facts({"systems": ["rocky-9.4"]}) == []
    assert probe.check_facts({}) == []


def test_a_package_of_another_system_is_no_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [
        {"role": "r", "kind": "package", "name": "not-there", "systems": ["debian-12"]},
        {"role": "r", "kind": "package", "name": "not-there-either", "systems": ["ubuntu-24.04"]},
        {"role": "r", "kind": "package", "name": "nowhere"},
    ]
    monkeypatch.setattr(probe, "read_system", lambda: "ubuntu-24.04")
    report = probe.probe({"items": items})
    assert [item["what"] for item in report["drift"]] == ["not-there-either", "nowhere"]
