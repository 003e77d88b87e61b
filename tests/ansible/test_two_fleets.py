"""Two stacks, one for each region, in one run of Ansible: inventory, keys and the probe on real SSH servers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import yaml
from hanging import HANGING_SECONDS
from ssh_servers import ADDRESS, Loop, Server

from vllm_fleet.base import paths


@pytest.fixture
def client(tmp_path: Path) -> asyncssh.SSHKey:
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(str(tmp_path / "id"))
    (tmp_path / "id").chmod(0o600)
    return key


@pytest.fixture
def servers(client: asyncssh.SSHKey, tmp_path: Path) -> Iterator[Loop]:
    # The machine of a test may run no systemd: 'systemctl show' of units that are not there.
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "systemctl").write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    (tools / "systemctl").chmod(0o755)
    loop = Loop(client, tools)
    yield loop
    loop.stop()


def write(fleets: Path, name: str, server: Server, key_file: Path, gateway: str, model: dict[str, Any]) -> Path:
    """A fleet of one serving host and one gateway, both on the same server's address, at different ports."""
    folder = fleets / name
    folder.mkdir()
    host = {"address": ADDRESS, "port": server.port, "ssh_host_key": server.key, "user": "root"}
    fleet = {
        "fleet": name,
        **model,
        "pools": {name: {"host_class": "cpu-2", "cloud": "static", "static": {f"{name}-0": host}}},
        "gateway": {"name": gateway, "hosts": 0},
        "access": {"ssh_private_key_file": str(key_file)},
    }
    (folder / "fleet.yml").write_text(yaml.safe_dump(fleet, sort_keys=False), encoding="utf-8")
    return folder / "fleet.yml"


@pytest.fixture
def two(fleets: Path, tmp_path: Path, servers: Loop) -> Iterator[tuple[list[Path], list[Server]]]:
    golden = yaml.safe_load((fleets / "golden" / "fleet.yml").read_text(encoding="utf-8"))
    common = {key: golden[key] for key in ("defaults", "artifacts") if key in golden}
    made = [servers.server(), servers.server()]
    names = [f"east{os.getpid()}", f"west{os.getpid()}"]
    files = [
        write(fleets, name, server, tmp_path / "id", f"gw-{name}", common)
        for name, server in zip(names, made, strict=True)
    ]
    yield files, made
    for name in names:
        shutil.rmtree(paths.run_dir(name), ignore_errors=True)


def run(program: str, files: list[Path], *words: str) -> subprocess.CompletedProcess[str]:
    inventories = [word for file in files for word in ("-i", str(file))]
    return subprocess.run(
        [program, *inventories, *words],
        cwd=paths.root(),
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGING_SECONDS,
    )


def test_one_inventory_has_the_hosts_of_both_with_their_own_keys(two: tuple[list[Path], list[Server]]) -> None:
    files, made = two
    done = run("ansible-inventory", files, "--list")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = [f"{file.parent.name}-0" for file in files]
    assert found["serving"]["hosts"] == names
    for name, file, server in zip(names, files, made, strict=True):
        variables = found["_meta"]["hostvars"][name]
        assert variables["fleet_name"]["__ansible_unsafe"] == file.parent.name
        known = Path(variables["ansible_ssh_common_args"]["__ansible_unsafe"].split("UserKnownHostsFile=")[1])
        assert server.key in known.read_text(encoding="utf-8")
        others = {each.key for each in made} - {server.key}
        assert not [key for key in others if key in known.read_text(encoding="utf-8")]


def test_a_name_in_both_is_an_error_that_says_what_to_rename(two: tuple[list[Path], list[Server]]) -> None:
    files, _ = two
    first = files[0].parent.name
    text = files[1].read_text(encoding="utf-8").replace(f"{files[1].parent.name}-0:", f"{first}-0:")
    files[1].write_text(text, encoding="utf-8")
    done = run("ansible-inventory", files, "--list")
    assert done.returncode == 2
    assert f"the host {first}-0 is in the fleet {first} too" in done.stderr
    assert "rename the pool, or set another gateway.name" in done.stderr


def test_one_probe_asks_the_hosts_of_both_and_keeps_the_drift_of_each(two: tuple[list[Path], list[Server]]) -> None:
    files, made = two
    done = run("ansible-playbook", files, "playbooks/probe.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(server.logins == ["root"] for server in made)
    for file in files:
        kept = json.loads((paths.run_dir(file.parent.name) / "drift.json").read_text(encoding="utf-8"))
        assert list(kept["hosts"]) == [f"{file.parent.name}-0"]
        assert kept["hosts"][f"{file.parent.name}-0"], "a bare host has drifted"
