"""What the programs of 'leave' write down, remove and keep; the roles themselves are in tests/infra."""

from __future__ import annotations

import copy
import fnmatch
import json
import pwd
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.cli import app
from vllm_fleet.cli import leave as cli_leave
from vllm_fleet.edge import playbook
from vllm_fleet.edge.connection import NoAnswerError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.host.acme import AcmeAccount, Certificate
from vllm_fleet.host.manifest import gateway_items
from vllm_fleet.host.manifest_items import file_item, package_item, user_item
from vllm_fleet.inventory import Site
from vllm_fleet.on_host import docker_engine, host_leave, host_record, neighbours
from vllm_fleet.operate import leave
from vllm_fleet.schema.acme import Acme

OURS: dict[str, Any] = {
    "live-restore": True,
    "insecure-registries": ["10.0.0.2:5000"],
    "runtimes": {"nvidia": {"path": "nvidia-container-runtime"}},
}
KEYS = st.sampled_from(["live-restore", "insecure-registries", "runtimes", "nvidia", "path", "labels", "log-opts"])
SETTINGS = st.recursive(
    st.one_of(st.booleans(), st.text(max_size=3), st.lists(st.sampled_from(["10.0.0.2:5000", "a", "b"]), max_size=3)),
    lambda inner: st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(KEYS, SETTINGS, max_size=5))
def test_settings_that_were_merged_can_be_taken_out_again(theirs: dict[str, Any]) -> None:
    """Whatever somebody else has: no value of theirs changes, and all of ours goes."""
    before = copy.deepcopy(theirs)
    merged, added, conflicts = docker_engine.merge_settings(theirs, OURS)
    assert theirs == before
    assert docker_engine.remove_settings(json.loads(json.dumps(merged)), json.loads(json.dumps(added))) == before
    if not conflicts:
        assert docker_engine.same_value(merged, OURS)
        assert docker_engine.merge_settings(merged, OURS) == (merged, [], [])


def test_a_setting_that_somebody_has_changed_since_then_stays() -> None:
    _, added, _ = docker_engine.merge_settings({}, OURS)
    changed = {"live-restore": False, "insecure-registries": ["10.0.0.2:5000", "theirs:80"]}
    assert docker_engine.remove_settings(changed, added) == {
        "live-restore": False,
        "insecure-registries": ["theirs:80"],
    }


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The answers of the commands of a host that the toolkit has not touched."""
    answers = {"dpkg-query": "haproxy installed", "apt-mark": "linux-image-generic", "systemctl": "not-found"}
    answers["nft"] = "table inet filter\ntable ip6 shop"
    monkeypatch.setattr(docker_engine, "command_output", lambda *words: answers[words[0]])
    monkeypatch.setattr(neighbours, "read_ours", lambda: neighbours.Ours((), False, False))
    return answers


EMPTY: dict[str, Any] = {
    **{"version": 1, "made": [], "theirs": [], "units": {}, "fleet": ""},
    **dict.fromkeys(("held", "installed", "groups", "tables")),
}


def test_what_is_there_is_somebody_elses_and_the_rest_will_be_made(
    host: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").write_text("x")
    monkeypatch.setattr(pwd, "getpwnam", lambda _: SimpleNamespace())
    items = [
        file_item("r", str(tmp_path / "there"), "0" * 64),
        file_item("r", str(tmp_path / "not"), "0" * 64),
        package_item("r", "haproxy"),
        package_item("r", "nginx-light"),
        package_item("r", "docker.io", alternatives=["haproxy"]),
        user_item("r", "vllm", "/var/lib/vllm"),
    ]
    record = host_record.extend_record(dict(EMPTY), items)
    assert record["made"] == [f"file:{tmp_path / 'not'}", "package:nginx-light"]
    assert record["theirs"] == [*(f"file:{tmp_path / 'there'}", "package:docker.io", "package:haproxy", "user:vllm")]
    assert (record["held"], record["installed"]) == (["linux-image-generic"], ["haproxy"])
    assert (record["tables"], "root" in record["groups"]) == (["inet filter", "ip6 shop"], True)
    # The first record stays when the roles have made the rest.
    (tmp_path / "not").write_text("ours")
    host["dpkg-query"] = "haproxy installed\nnginx-light installed"
    assert host_record.extend_record(record, items) == record


def test_a_host_from_before_there_was_a_record_is_ours_but_for_its_packages(
    host: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "read_ours", lambda: neighbours.Ours((), False, True))
    monkeypatch.setattr(pwd, "getpwnam", lambda _: SimpleNamespace())
    (tmp_path / "vllm-instance").write_text("x")
    items = [
        file_item("r", str(tmp_path / "vllm-instance"), "0" * 64),
        user_item("r", "vllm", "/var/lib/vllm"),
        package_item("r", "haproxy"),
    ]
    record = host_record.extend_record(dict(EMPTY), items)
    assert record["made"] == [f"file:{tmp_path / 'vllm-instance'}", "user:vllm"]
    assert (record["theirs"], record["held"]) == (["package:haproxy"], [])


def test_the_record_keeps_the_fleet_that_set_the_host_up(host: dict[str, str]) -> None:
    record = host_record.extend_record(dict(EMPTY), [], "lab")
    assert record["fleet"] == "lab"
    assert host_record.extend_record(record, [], "rack") == record


def test_the_record_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "record.json"
    host_record.write_record(str(path), EMPTY)
    assert host_record.read_record(str(path)) == EMPTY
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]


def leaving(monkeypatch: pytest.MonkeyPatch, record: dict[str, Any], **request: bool) -> host_leave.Leaving:
    monkeypatch.setattr(host_record, "read_record", lambda _: record)
    return host_leave.Leaving({"check": False, "packages": False, "keep_models": False, **request})


def test_a_folder_with_something_mounted_in_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as weights on NFS, which belong to more than this host."""
    (tmp_path / "models" / "nfs").mkdir(parents=True)
    monkeypatch.setattr(host_leave, "mounts_below", lambda path: [f"{path}/nfs"])
    run = leaving(monkeypatch, EMPTY)
    run.delete(str(tmp_path / "models"))
    assert run.removed == []
    assert run.kept[0]["what"] == str(tmp_path / "models")
    assert (tmp_path / "models" / "nfs").is_dir()


def test_mounts_are_found_below_a_path_and_not_beside_it() -> None:
    assert "/proc" in host_leave.mounts_below("/proc")
    assert host_leave.mounts_below("/pro") == []


def test_links_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adopted models are links to files of somebody else."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "weights").write_text("x")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "adopted").symlink_to(tmp_path / "theirs")
    leaving(monkeypatch, EMPTY).delete(str(tmp_path / "models"))
    assert not (tmp_path / "models").exists()
    assert (tmp_path / "theirs" / "weights").exists()


def test_a_check_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = leaving(monkeypatch, EMPTY, check=True)
    (tmp_path / "a").write_text("x")
    run.delete(str(tmp_path / "a"))
    assert run.run("all", "false") is True
    assert run.removed == [str(tmp_path / "a"), "all"]
    assert (tmp_path / "a").exists()


def test_packages_of_others_are_not_removed_with_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    run = leaving(monkeypatch, {**EMPTY, "made": ["package:haproxy"]}, packages=True)
    monkeypatch.setattr(docker_engine, "installed", lambda _: ["haproxy"])
    answer = "Purg theirs [1]\nPurg haproxy [2]"
    monkeypatch.setattr(docker_engine, "command_output", lambda *_: answer)
    host_leave.leave_packages(run)
    assert run.removed == []
    assert run.kept[-1] == {"what": "packages haproxy", "why": "without them apt would remove theirs too"}


def test_a_folder_that_others_have_linked_the_models_to_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "data"
    theirs.mkdir()
    (theirs / "weights").write_text("x")
    models = tmp_path / "models"
    models.symlink_to(theirs)
    monkeypatch.setattr(host_leave, "MODELS", str(models))
    for name, value in (("PLACES", ()), ("STATE", str(tmp_path / "none"))):
        monkeypatch.setattr(host_leave, name, value)
    monkeypatch.setattr(host_leave, "named_files", list)
    monkeypatch.setattr(host_leave.subprocess, "run", lambda *_, **__: None)
    run = leaving(monkeypatch, EMPTY)
    host_leave.delete_files(run)
    assert (theirs / "weights").exists()
    assert not models.is_symlink()
    assert run.kept == [{"what": str(theirs), "why": f"{models} was linked to it, not by vllm-fleet"}]


def is_covered(path: str) -> bool:
    """Whether 'leave' removes a file by its name or its place."""
    below = ("/var/lib/vllm/", "/opt/vllm/", "/var/cache/vllm/", "/run/vllm-", "/etc/vllm/", "/srv/vllm-fleet-mirror/")
    return (
        "vllm-fleet" in path
        or path.startswith(below)
        or any(
            fnmatch.fnmatchcase(str(place), pattern)
            for place in (path, *Path(path).parents)
            for pattern in host_leave.PLACES
        )
    )


#: Files with names of others: the record, or the mark in them, says whose they are.
SHARED = {"/etc/haproxy/haproxy.cfg", "/etc/docker/daemon.json"}


def test_every_file_of_a_manifest_is_removed_on_a_host_without_a_record(golden_site: Site, image_site: Site) -> None:
    files = {
        item["path"]
        for site in (golden_site, image_site)
        for host in site.hosts
        for item in host.manifest.items
        if item["kind"] in ("file", "link", "store", "settings")
    }
    asked = Acme(email="me@example.com", names=["api.example.com"], accept_terms=True)
    items = gateway_items("", "", "", Certificate(account=AcmeAccount(asked)))
    files |= {item["path"] for item in items if item["kind"] == "file"} | {"/var/lib/vllm-gateway/certbot"}
    assert {path for path in files if not is_covered(path)} <= SHARED
    assert files >= SHARED


def test_every_unit_of_the_roles_is_stopped() -> None:
    units = {path.name for path in (paths.root() / "roles").glob("*/files/*.service")}
    for unit in units:
        name = unit.replace("@.", "@0.")
        assert any(fnmatch.fnmatchcase(name, pattern) for pattern in host_leave.UNITS), unit


def test_sources_of_others_that_a_role_switched_off_are_switched_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = "# disabled by vllm-fleet: deb https://vendor.example/ubuntu noble main\n# deb https://old.example a b\n"
    stanza = "Types: deb\n# disabled by vllm-fleet\nEnabled: no\nURIs: https://vendor.example\n\nEnabled: no\nURIs: x\n"
    (tmp_path / "one.list").write_text(one)
    (tmp_path / "two.sources").write_text(stanza)
    monkeypatch.setattr(host_leave.glob, "glob", lambda _: [str(path) for path in tmp_path.iterdir()])
    host_leave.restore_sources(leaving(monkeypatch, EMPTY))
    assert (tmp_path / "one.list").read_text() == (
        "deb https://vendor.example/ubuntu noble main\n# deb https://old.example a b\n"
    )
    assert (tmp_path / "two.sources").read_text() == (
        "Types: deb\nURIs: https://vendor.example\n\nEnabled: no\nURIs: x\n"
    )


@pytest.fixture
def playbooks(fleets: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The variables of each playbook that a command runs, on a host with one thing to remove."""
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(fleets))
    left = leave.Left(("/opt/vllm",), ({"what": "packages haproxy", "why": "add --packages to remove them"},))
    monkeypatch.setattr(leave, "check_leave", lambda *_: left)
    runs: list[dict[str, str]] = []
    monkeypatch.setattr(cli_leave, "run_playbook", lambda _name, _inventory, variables, _word: runs.append(variables))
    return runs


def test_leaving_needs_a_word(playbooks: list[dict[str, str]]) -> None:
    result = CliRunner().invoke(app, ["leave", "--fleet", "golden", "rack-a"])
    assert isinstance(result.exception, FleetError)
    assert result.exception.exit_code == 2
    assert "--yes" in result.exception.hint
    assert playbooks == []


def test_a_check_lists_what_would_go_and_what_stays(playbooks: list[dict[str, str]]) -> None:
    result = CliRunner().invoke(app, ["leave", "--fleet", "golden", "rack-a", "--check"])
    assert result.stdout.splitlines() == [
        "rack-a: would remove /opt/vllm",
        "rack-a: would keep packages haproxy: add --packages to remove them",
    ]
    assert playbooks == []


def test_a_host_leaves_by_the_playbook_and_its_fleet_is_told(playbooks: list[dict[str, str]]) -> None:
    result = CliRunner().invoke(app, ["leave", "--fleet", "golden", "rack-a", "--yes", "--keep-models"])
    assert result.exit_code == 0
    assert playbooks == [
        {
            "fleet_leave_host": "rack-a",
            "fleet_leave_packages": "false",
            "fleet_leave_models_kept": "true",
            "fleet_leave_drained": "true",
        }
    ]
    assert "remove it there and run site.yml" in result.stderr


def test_ansible_gets_the_password_that_was_read_not_the_file_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A pipe can be read once."""
    runs: list[tuple[list[str], str | None]] = []

    def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        runs.append((words[-2:], options.get("input")))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(subprocess, "run", run)
    playbook.run_playbook("leave.yml", tmp_path, {"a": "b"}, "word")
    playbook.run_playbook("leave.yml", tmp_path, {"a": "b"})
    assert runs == [(["--become-password-file", "-"], "word"), (["-e", "a=b"], None)]


@pytest.mark.parametrize("answer", ["", "Welcome to DGX OS\n", "[]", '{"failed": ["account vllm: busy"]}'])
def test_an_answer_that_is_none_and_a_failure_are_one_clear_error(answer: str) -> None:
    with pytest.raises(FleetError) as caught:
        leave.parse_left("gpu-0", answer, "python3: not found\n")
    assert caught.value.exit_code == 1
    assert ("busy" if "busy" in answer else "python3: not found") in caught.value.message


#: Made by dockerd 20.10 with iptables-nft 1.8.9.
TABLE_OF_DOCKER = """\
# Warning: table ip filter is managed by iptables-nft, do not touch!
table ip filter {
\tchain DOCKER {
\t}
\tchain DOCKER-ISOLATION-STAGE-2 {
\t\tcounter packets 0 bytes 0 return
\t}
\tchain FORWARD {
\t\ttype filter hook forward priority filter; policy drop;
\t\tcounter packets 0 bytes 0 jump DOCKER-USER
\t\toifname "docker0" ct state related,established counter packets 0 bytes 0 accept
\t}
\tchain DOCKER-USER {
\t\tcounter packets 0 bytes 0 return
\t}
}
"""


def test_a_table_of_docker_with_a_rule_of_somebody_else_is_not_dockers() -> None:
    assert host_leave.is_of_docker(TABLE_OF_DOCKER)
    other = TABLE_OF_DOCKER.replace('oifname "docker0"', 'oifname "shop0"')
    assert not host_leave.is_of_docker(other)
    assert not host_leave.is_of_docker("table ip filter {\n}\n"), "an empty one says nothing of docker"


def test_each_host_says_what_it_has_recorded(golden_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "a": '{"changed": true, "first_boot": false, "theirs": []}',
        "b": "no JSON",
        "c": "",
        "d": '{"changed": false}',
    }

    async def answer(target: Target, *_: Any) -> str:
        if target.name == "c":
            raise NoAnswerError("cannot be reached")
        return answers[target.name]

    monkeypatch.setattr(leave.ssh, "run_json", answer)
    manifest = golden_site.hosts[0].manifest
    works = [(Target(name, "192.0.2.1", 22, "root", ()), manifest) for name in answers]
    found = leave.record_hosts(works, check=True)
    # A host that does not say so may have a first boot.
    assert (found["a"], found["d"]) == (leave.Recorded(True, False), leave.Recorded(False, True))
    assert [str(found[name]).split(":")[0] for name in ("b", "c")] == ["b", "c"]
    assert all(isinstance(found[name], FleetError) for name in ("b", "c"))


@pytest.mark.parametrize(
    ("folder", "program", "found"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_a_first_boot_is_waited_for_where_cloud_init_is(
    folder: bool, program: bool, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.path.isdir", lambda path: folder and path == "/run/cloud-init")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if program else None)
    assert host_record.has_cloud_init() is found
