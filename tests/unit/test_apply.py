"""Items that are applied in place: which they are, what the program on the host does, and what is left to roles."""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_fleet.base import paths
from vllm_fleet.edge.connection import JumpHosts, NoAnswerError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.facts.host_answer import Applied
from vllm_fleet.host.manifest_items import item_name
from vllm_fleet.inventory import Site, SiteHost
from vllm_fleet.on_host import host_apply
from vllm_fleet.operate import apply

ME = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}
#: What the probe says of each kind on a new host.
NEW = {"unit": "unknown_unit", "table": "not_loaded"}


@pytest.fixture
def hosts(golden_site: Site) -> Mapping[str, SiteHost]:
    """One host that serves, and one gateway."""
    serving = next(host for host in golden_site.hosts if host.plan.kind == "serving")
    gateway = next(host for host in golden_site.hosts if host.plan.kind == "gateway")
    return {"gpu-0": serving, "gw-0": gateway}


def drift(host: SiteHost, *, without: Sequence[str] = ("package",), **states: str) -> list[dict[str, str]]:
    """All items of a host, missing, as the probe reports them.

    Args:
        host: the host.
        without: kinds of items that do not differ.
        states: role or kind -> another state.
    """
    return [
        {
            "role": item["role"],
            "kind": item["kind"],
            "what": item_name(item),
            "state": states.get(item["role"]) or states.get(item["kind"]) or NEW.get(item["kind"], "missing"),
        }
        for item in host.manifest.items
        if item["kind"] not in without
    ]


def test_a_new_host_gets_all_but_packages_engine_model_and_release(hosts: Mapping[str, SiteHost]) -> None:
    work = apply.plan_work(hosts["gpu-0"], drift(hosts["gpu-0"]), idle=True)
    assert {item["role"] for item in work.items} == set(apply.ROLES)
    names = [item_name(item) for item in work.items]
    assert "vllm-firewall.service" in names
    assert "/etc/vllm/firewall.nft" in names
    assert not any("/releases" in name or "/current" in name or name.startswith("vllm@") for name in names)
    # The account comes before what it owns, files before the units that read them.
    assert names.index("vllm") < names.index("/var/cache/vllm")
    assert names.index("/etc/vllm/firewall.nft") < names.index("vllm-firewall.service")
    assert all(hashlib.sha256(text.encode()).hexdigest() == digest for digest, text in work.contents.items())


def test_a_host_that_serves_keeps_its_firewall_and_units_until_the_rollout(hosts: Mapping[str, SiteHost]) -> None:
    work = apply.plan_work(hosts["gpu-0"], drift(hosts["gpu-0"]), idle=False)
    assert {item["role"] for item in work.items} == {"host_baseline"}


def test_a_host_that_becomes_the_mirror_is_left_to_its_roles(hosts: Mapping[str, SiteHost]) -> None:
    """Its packages come from the distribution until it serves them itself."""
    gateway = hosts["gw-0"]
    mirror = {"role": "mirror", "kind": "package", "what": "nginx-light", "state": "not_installed"}
    assert apply.plan_work(gateway, drift(gateway), idle=False).items
    assert not apply.plan_work(gateway, [*drift(gateway), mirror], idle=False).items


def test_a_gateway_gets_what_every_host_has(hosts: Mapping[str, SiteHost]) -> None:
    work = apply.plan_work(hosts["gw-0"], drift(hosts["gw-0"]), idle=False)
    assert {item["role"] for item in work.items} == {"host_baseline"}


@pytest.mark.parametrize(
    ("without", "states"),
    [
        ((), {}),
        (("package",), {"directory": "wrong_type"}),
        (("package",), {"user": "wrong_shell"}),
    ],
    ids=["a package is missing", "something else is there", "the account is another one"],
)
def test_a_role_that_needs_more_runs_and_so_do_those_after_it(
    without: Sequence[str], states: Mapping[str, str], hosts: Mapping[str, SiteHost]
) -> None:
    host = hosts["gpu-0"]
    assert apply.plan_work(host, drift(host, without=without, **states), idle=True).items == ()


@pytest.mark.parametrize("state", ["foreign_unit_file", "in_transition"])
def test_a_unit_that_others_change_is_its_roles(state: str, hosts: Mapping[str, SiteHost]) -> None:
    host = hosts["gpu-0"]
    wrong = [{**each, "state": state} if each["kind"] == "unit" else each for each in drift(host)]
    assert apply.plan_work(host, wrong, idle=True).items == ()


def test_rules_are_reloaded_by_their_role(hosts: Mapping[str, SiteHost]) -> None:
    host = hosts["gpu-0"]
    rules = [each for each in drift(host) if each["kind"] == "table"]
    assert apply.plan_work(host, rules, idle=True).items == ()


def test_a_folder_among_the_files_of_a_role_is_no_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for role in apply.ROLES:
        (tmp_path / "roles" / role / "files" / "__pycache__").mkdir(parents=True)
    (tmp_path / "roles/vllm_service/files/a").write_text("text")
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    assert apply._role_files.__wrapped__() == {hashlib.sha256(b"text").hexdigest(): "text"}


def file(path: Path, text: str, **more: str) -> dict[str, str]:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"role": "r", "kind": "file", "path": str(path), "sha256": digest, "mode": "0640", **ME, **more}


def question(items: Sequence[Mapping[str, Any]], *texts: str, diff: bool = False) -> dict[str, Any]:
    contents = {hashlib.sha256(text.encode()).hexdigest(): text for text in texts}
    return {"items": items, "contents": contents, "groups": ["video"], "diff": diff}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs of the system that would have run."""
    words: list[str] = []
    monkeypatch.setattr(host_apply, "run", lambda *command: words.append(" ".join(command)))
    return words


def test_files_and_directories_get_content_mode_and_owner(tmp_path: Path, ran: list[str]) -> None:
    folder = {"role": "r", "kind": "directory", "path": str(tmp_path / "a"), "mode": "0750", **ME}
    answer = host_apply.apply_items(question([folder, file(tmp_path / "a/b/c", "new\n")], "new\n"))
    assert answer == {"applied": [str(tmp_path / "a"), str(tmp_path / "a/b/c")], "left": {}, "diffs": []}
    assert (tmp_path / "a/b/c").read_text() == "new\n"
    assert (tmp_path / "a/b/c").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o750
    assert [each.name for each in (tmp_path / "a/b").iterdir()] == ["c"]
    assert ran == []


def test_a_diff_has_the_old_and_the_new_content(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old\n")
    answer = host_apply.apply_items(question([file(tmp_path / "f", "new\n")], "new\n", diff=True))
    (shown,) = apply.diffs_of("gpu-0", Applied(**{**answer, "diffs": [{**answer["diffs"][0], "before": "\x1b[2J\n"}]}))
    assert (shown["before"], shown["after"]) == ("\\x1b[2J\n", "new\n")
    assert shown["after_header"] == f"gpu-0: {tmp_path / 'f'}"


@pytest.mark.parametrize("there", ["link", "directory"])
def test_what_is_no_file_stays_and_ends_the_work(there: str, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.symlink_to("/etc/passwd") if there == "link" else path.mkdir()
    items = [file(path, "new\n"), file(tmp_path / "later", "new\n")]
    answer = host_apply.apply_items(question(items, "new\n"))
    assert answer["applied"] == []
    assert answer["left"] == {str(path): f"{path} is no file"}
    assert path.is_symlink() or path.is_dir()
    assert not (tmp_path / "later").exists()


def test_a_link_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "d").symlink_to(tmp_path)
    item = {"role": "r", "kind": "directory", "path": str(tmp_path / "d"), "mode": "0700", **ME}
    assert host_apply.apply_items(question([item]))["left"] == {item["path"]: f"{item['path']} is no directory"}


def test_content_with_another_digest_is_not_written(tmp_path: Path) -> None:
    asked = question([file(tmp_path / "f", "new\n")])
    asked["contents"] = {asked["items"][0]["sha256"]: "other\n"}
    assert "another digest" in host_apply.apply_items(asked)["left"][str(tmp_path / "f")]
    assert list(tmp_path.iterdir()) == []


def test_an_owner_that_the_host_does_not_have_leaves_the_file(tmp_path: Path) -> None:
    answer = host_apply.apply_items(question([file(tmp_path / "f", "new\n", owner="no-such-account")], "new\n"))
    assert "no-such-account" in answer["left"][str(tmp_path / "f")]


def test_systemd_reads_new_units_before_one_starts(
    tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_apply, "UNITS", f"{tmp_path}/")
    unit = {"role": "r", "kind": "unit", "name": "a.service", "active": True, "enabled": True}
    host_apply.apply_items(question([file(tmp_path / "a.service", "x"), unit, file(tmp_path / "b.service", "x")], "x"))
    reload = "systemctl daemon-reload"
    assert ran == [reload, "systemctl enable --quiet a.service", "systemctl start a.service", reload]


def test_a_kernel_parameter_is_loaded_before_its_file_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_apply, "SYSCTLS", f"{tmp_path}/")

    def refuse(*words: str) -> None:
        assert words[:2] == ("sysctl", "--load")
        raise host_apply.NotAppliedError("no such parameter")

    monkeypatch.setattr(host_apply, "run", refuse)
    answer = host_apply.apply_items(question([file(tmp_path / "60.conf", "x")], "x"))
    assert answer["left"] == {str(tmp_path / "60.conf"): "no such parameter"}
    assert list(tmp_path.iterdir()) == []


def test_an_account_gets_the_groups_of_devices_first(ran: list[str]) -> None:
    user = {"role": "r", "kind": "user", "name": "vllm", "home": "/var/lib/vllm", "shell": "/usr/sbin/nologin"}
    host_apply.apply_items(question([user]))
    assert ran[0] == "groupadd --force --system video"
    assert ran[1].startswith("useradd --system --no-create-home")


def test_other_kinds_are_left(ran: list[str]) -> None:
    package = {"role": "r", "kind": "package", "name": "nftables"}
    assert "package" in host_apply.apply_items(question([package]))["left"]["nftables"]
    assert ran == []


def test_directories_above_a_file_are_for_all_to_enter(tmp_path: Path) -> None:
    asked = question([file(tmp_path / "a/b", "new\n")], "new\n")
    program = Path(host_apply.__file__)
    words = ["sh", "-c", 'umask 077; exec "$@"', "-", sys.executable, "-IS", str(program)]
    done = subprocess.run(words, input=json.dumps(asked), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["applied"] == [str(tmp_path / "a/b")]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


def test_a_program_that_fails_says_why() -> None:
    with pytest.raises(host_apply.NotAppliedError, match="oops"):
        host_apply.run("sh", "-c", "echo oops; exit 3")


def test_a_host_without_an_answer_is_left_to_its_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"a": '{"applied": ["/etc/a"], "left": {}, "diffs": []}', "b": '{"applied": 1}', "c": ""}

    async def answer(target: Target, _command: str, text: str, _jump_hosts: JumpHosts) -> str:
        assert json.loads(text)["groups"] == list(apply.GROUPS)
        if target.name == "c":
            raise NoAnswerError("cannot be reached")
        return answers[target.name]

    monkeypatch.setattr("vllm_fleet.edge.ssh.run_json", answer)
    works = [(Target(name, "192.0.2.1", 22, "root", ()), apply.Work((), {})) for name in answers]
    found = apply.apply_work(works, diff=False)
    assert found["a"] == Applied(applied=["/etc/a"], left={}, diffs=[])
    assert "applied" in str(found["b"])
    assert found["c"] == "cannot be reached"


def test_the_groups_of_devices_are_those_of_the_role() -> None:
    tasks = yaml.safe_load((paths.root() / "roles/host_baseline/tasks/account.yml").read_text(encoding="utf-8"))
    (loop,) = (task["loop"] for task in tasks if "ansible.builtin.group" in task)
    assert tuple(loop) == apply.GROUPS
