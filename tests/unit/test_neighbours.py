"""What somebody else has on a host is named before a role touches it, and what is ours is not."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_fleet.host.manifest_items import directory_item, file_item, package_item, unit_item, user_item
from vllm_fleet.on_host import docker_engine, neighbours, probe

NOBODY = neighbours.Ours((), False, False)


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def conflicts(manifest: dict[str, Any], drift: list[dict[str, str]]) -> list[str]:
    return [row["code"] for row in neighbours.find_conflicts(manifest, drift)]


def test_a_port_of_another_program_is_named_with_the_program(listener: int) -> None:
    (found,) = neighbours.check_ports([{"port": listener, "address": ""}])
    assert found[0] == "port_taken"
    assert f"port {listener} is used by" in found[1]
    assert f"(process {os.getpid()}" in found[1]


def test_a_port_on_another_address_is_free(listener: int) -> None:
    assert list(neighbours.check_ports([{"port": listener, "address": "10.1.2.3"}])) == []
    assert len(list(neighbours.check_ports([{"port": listener, "address": "127.0.0.1"}]))) == 1


def test_a_name_may_be_any_address_of_the_host(listener: int) -> None:
    assert len(list(neighbours.check_ports([{"port": listener, "address": "gpu-0.example"}]))) == 1


def test_addresses_are_compared_and_not_their_spelling() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        for address, count in (("[0:0:0:0:0:0:0:1]", 1), ("::2", 0)):
            assert len(list(neighbours.check_ports([{"port": port, "address": address}]))) == count


def test_a_port_on_every_address_is_taken_for_each() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        assert len(list(neighbours.check_ports([{"port": port, "address": "10.1.2.3"}]))) == 1


@pytest.mark.parametrize("unit", ["vllm@0.service", "vllm-docker@3.service", "haproxy.service"])
def test_a_port_of_our_own_unit_is_free(listener: int, monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    monkeypatch.setattr(neighbours, "_unit_of", lambda _: unit)
    assert list(neighbours.check_ports([{"port": listener, "address": ""}])) == []


def test_a_port_of_our_container_is_free(listener: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is in a scope of docker, and runs as the account vllm."""
    own = SimpleNamespace(pw_uid=os.getuid())
    monkeypatch.setattr(pwd, "getpwnam", lambda _: own)
    assert list(neighbours.check_ports([{"port": listener, "address": ""}])) == []


def test_the_unit_of_a_process_is_read_in_both_versions_of_cgroups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {
        "0::/system.slice/system-vllm.slice/vllm@0.service\n": "vllm@0.service",
        "2:cpu:/\n1:name=systemd:/system.slice/ollama.service\n": "ollama.service",
        "0::/user.slice/user-1000.slice/session-3.scope\n": "session-3.scope",
        "0::/\n": "",
    }
    for text, unit in texts.items():
        (tmp_path / "cgroup").write_text(text)
        monkeypatch.setattr("builtins.open", lambda *_, **__: (tmp_path / "cgroup").open())
        assert neighbours._unit_of(1) == unit
        monkeypatch.undo()


def test_a_file_of_somebody_else_is_named_and_ours_is_not(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text("global\n  log stdout\n")
    (code, text) = neighbours.check_file(str(config), NOBODY) or ("", "")
    assert code == "foreign_file"
    assert str(config) in text
    assert neighbours.check_file(str(config), neighbours.Ours([f"file:{config}"], True, True)) is None
    assert neighbours.check_file(str(tmp_path / "nothing"), NOBODY) is None
    config.write_text("# Made by vllm-fleet; another run replaces what is changed here.\nglobal\n")
    assert neighbours.check_file(str(config), NOBODY) is None


def test_a_file_as_its_package_brought_it_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text("x")
    answers = {"-S": f"haproxy: {config}", "-W": f"{config} 9dd4e461268c8034f5c8564e155c67a6"}
    monkeypatch.setattr(docker_engine, "command_output", lambda *words: answers[words[1]])
    assert neighbours.check_file(str(config), NOBODY) is None
    config.write_text("y")
    assert neighbours.check_file(str(config), NOBODY) is not None


def test_an_account_of_somebody_else_is_named_and_ours_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    item = user_item("r", "vllm", "/var/lib/vllm", "/usr/sbin/nologin")
    person = SimpleNamespace(pw_uid=1003, pw_dir="/home/vllm", pw_shell="/bin/bash")
    monkeypatch.setattr(pwd, "getpwnam", lambda _: person)
    (code, text) = neighbours.check_account(item, NOBODY) or ("", "")
    assert code == "foreign_account"
    assert "number 1003, home /home/vllm, shell /bin/bash" in text
    assert neighbours.check_account(item, neighbours.Ours(["user:vllm"], True, True)) is None
    assert neighbours.check_account(item, neighbours.Ours((), False, True)) is None, "set up before there was a record"


def test_a_group_without_the_account_is_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: str) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwnam", nobody)
    monkeypatch.setattr(grp, "getgrnam", lambda _: SimpleNamespace(gr_gid=990))
    assert (neighbours.check_account(user_item("r", "vllm", "/var/lib/vllm"), NOBODY) or ("",))[0] == "foreign_account"


def test_a_folder_with_something_in_it_is_somebody_elses_on_a_new_host(tmp_path: Path) -> None:
    folder = tmp_path / "vllm"
    folder.mkdir()
    assert neighbours.check_folder(str(folder), NOBODY) is None
    (folder / "engines").mkdir()
    assert neighbours.check_folder(str(folder), NOBODY) is None, "a folder that an image has prepared"
    (folder / "venv").mkdir()
    (code, text) = neighbours.check_folder(str(folder), NOBODY) or ("", "")
    assert code == "foreign_folder"
    assert "did not make (venv)" in text
    assert neighbours.check_folder(str(folder), neighbours.Ours((), False, True)) is None


def test_a_site_of_somebody_else_in_nginx_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = tmp_path / "sites-enabled"
    sites.mkdir()
    (sites / "shop").write_text("server {}\n")
    monkeypatch.setattr(neighbours, "SITES", (str(sites),))
    assert (neighbours.check_service("nginx.service") or ("",))[0] == "foreign_service"
    (sites / "shop").unlink()
    (sites / "mirror").write_text("# Made by vllm-fleet\nserver {}\n")
    assert neighbours.check_service("nginx.service") is None


def test_all_conflicts_of_a_host_are_in_one_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: int
) -> None:
    (tmp_path / "unit").write_text("[Service]\n")
    person = SimpleNamespace(pw_uid=1003, pw_dir="/home/vllm", pw_shell="/bin/bash", pw_gid=1003)
    monkeypatch.setattr(pwd, "getpwnam", lambda _: person)
    monkeypatch.setattr(probe, "installed_packages", lambda _: {})
    monkeypatch.setattr(docker_engine, "removed_by_apt", lambda names: ["theirs"] if names == ["ours"] else [])
    items = [
        file_item("r", str(tmp_path / "unit"), "0" * 64),
        user_item("r", "vllm", "/var/lib/vllm"),
        package_item("r", "ours"),
    ]
    manifest = {"items": items, "facts": {}, "ports": [{"port": listener, "address": ""}]}
    report = probe.probe(manifest)
    assert sorted(row["code"] for row in report["veto"]) == [
        *("foreign_account", "foreign_file", "port_taken", "would_remove")
    ]
    assert "to install ours, apt would remove theirs" in " ".join(row["why"] for row in report["veto"])


def test_a_folder_of_others_is_named_with_the_right_owner_and_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "venv").mkdir()
    monkeypatch.setattr(neighbours, "FOLDERS", (str(tmp_path),))
    monkeypatch.setattr(neighbours, "read_ours", lambda: NOBODY)
    assert conflicts({"items": [directory_item("r", str(tmp_path), "0700")], "ports": []}, []) == ["foreign_folder"]


def test_a_host_of_another_fleet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two fleets with one host would replace each other's API keys."""
    record = tmp_path / "record.json"
    read = neighbours.read_ours
    monkeypatch.setattr(neighbours, "read_ours", lambda: read(str(record)))
    record.write_text('{"made": [], "fleet": "lab"}')
    (found,) = neighbours.find_conflicts({"items": [], "ports": [], "fleet": "rack"}, [])
    assert found["code"] == "other_fleet"
    assert found["why"].startswith("the fleet lab has set it up: take it out there with 'vllm-fleet leave'")
    assert conflicts({"items": [], "ports": [], "fleet": "lab"}, []) == []
    record.write_text('{"made": []}')
    assert conflicts({"items": [], "ports": [], "fleet": "rack"}, []) == []


def test_a_host_as_its_manifest_says_asks_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The probe of a healthy host runs neither dpkg nor apt nor docker for its neighbours."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a command was run")

    monkeypatch.setattr(subprocess, "run", fail)
    items = [directory_item("r", str(tmp_path), "0755"), unit_item("r", "haproxy.service"), package_item("r", "p")]
    assert conflicts({"items": items, "ports": []}, []) == []
