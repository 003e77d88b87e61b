"""The project in AWX: an inventory source and a job, each with the files, words and environment that AWX gives them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pages
import pytest
import yaml
from hanging import HANGING_SECONDS
from ssh_servers import Loop, Server

from vllm_fleet.base import paths

FLEET = "awx"
SOURCE = f"inventories/{FLEET}/fleet.yml"
#: The playbook of the job: what site.yml does before the work on hosts, and the work as a task that names its host.
BOOK = """
- ansible.builtin.import_playbook: playbooks/probe.yml
- hosts: needs_vllm_service
  gather_facts: false
  tasks:
    - ansible.builtin.debug:
        msg: "served: {{ inventory_hostname }}."
"""
#: What AWX adds to the variables of each host.
OF_HOST = {"remote_tower_enabled": "true", "remote_tower_id": 7}


@pytest.fixture(scope="module")
def key() -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519")


@pytest.fixture(scope="module")
def servers(key: asyncssh.SSHKey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    # The machine of a test may run no systemd: 'systemctl show' of units that are not there.
    tools = tmp_path_factory.mktemp("tools")
    (tools / "systemctl").write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    (tools / "systemctl").chmod(0o755)
    loop = Loop(key, tools)
    yield [loop.server(), loop.server("127.0.0.3")]
    loop.stop()


@pytest.fixture(scope="module")
def folder(servers: list[Server], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The private data directory of AWX: the project as git has it, with a fleet whose private key is elsewhere."""
    data = tmp_path_factory.mktemp("runner")
    project = pages.copy_project(data / "project")
    (project / ".venv").unlink(missing_ok=True)
    golden = paths.root() / "tests" / "fixtures" / "fleets" / "golden"
    hosts = {
        f"main-{number}": {
            "address": address,
            "private_address": f"10.0.0.{number + 1}",
            "port": server.port,
            "ssh_host_key": server.key,
            "user": "root",
        }
        for number, (address, server) in enumerate(zip(("127.0.0.1", "127.0.0.3"), servers, strict=True))
    }
    spec = yaml.safe_load((golden / "fleet.yml").read_text(encoding="utf-8"))
    artifacts = project / "tests" / "fixtures" / "artifacts"
    fleet = {
        "fleet": FLEET,
        "defaults": spec["defaults"],
        "pools": {"main": {"host_class": "cpu-2", "cloud": "static", "static": hosts}},
        "access": {"ssh_private_key_file": "ssh/id_ed25519"},
        "artifacts": {
            "models": {spec["defaults"]["model"]: str(artifacts / "model")},
            "encodings": str(artifacts / "encodings"),
        },
    }
    file = project / SOURCE
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(fleet, sort_keys=False), encoding="utf-8")
    (project / "check.yml").write_text(BOOK, encoding="utf-8")
    return data


def environment(data: Path, **more: str) -> dict[str, str]:
    """That of the execution environment, and nothing of this shell."""
    definition = paths.root() / "execution-environment" / "execution-environment.yml"
    steps = yaml.safe_load(definition.read_text(encoding="utf-8"))["additional_build_steps"]["append_final"]
    own = dict(step.removeprefix("ENV ").split("=", 1) for step in steps)
    assert own["PYTHONPATH"] == "/runner/project"
    own["PYTHONPATH"] = str(data / "project")
    home = data / "home"
    home.mkdir(exist_ok=True)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return {**own, "HOME": str(home), "PATH": path, "LC_ALL": "C.UTF-8", **more}


def sync(data: Path) -> dict[str, Any]:
    """The inventory that AWX keeps of its source: awx/main/tasks/jobs.py, RunInventoryUpdate."""
    output = data / "output.json"
    file = data / "project" / SOURCE
    words = ["ansible-inventory", "--list", "--export", "-i", str(file), "--output", str(output)]
    done = subprocess.run(
        [*words, "--playbook-dir", str(file.parent)],
        cwd=data / "project",
        env=environment(data, ANSIBLE_INVENTORY_EXPORT="True", ANSIBLE_INVENTORY_UNPARSED_FAILED="True"),
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGING_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(output.read_text(encoding="utf-8")))


def run_job(data: Path, key: asyncssh.SSHKey, *words: str, **variables: str) -> tuple[int, str]:
    """A job: RunJob of the same file writes these files, and ansible-runner reads them in the execution environment."""
    inventory = sync(data)
    for host in inventory["_meta"]["hostvars"].values():
        host.update(OF_HOST)
    script = data / "inventory" / "hosts"
    script.parent.mkdir(exist_ok=True)
    text = f"#! /usr/bin/env python3\n# -*- coding: utf-8 -*-\nprint({json.dumps(inventory)!r})\n"
    script.write_text(text, encoding="utf-8")
    script.chmod(0o700)
    shutil.rmtree(data / "env", ignore_errors=True)
    (data / "env").mkdir()
    files = {
        "envvars": json.dumps(
            {
                "JOB_ID": "12",
                "INVENTORY_ID": "3",
                "ANSIBLE_SSH_CONTROL_PATH_DIR": str(data / "cp"),
                "MAX_EVENT_RES": "700000",
            }
        ),
        "extravars": json.dumps({"awx_job_id": 12, **variables}),
        "cmdline": " ".join(["--check", "-u", "root", *words]),
        "ssh_key": key.export_private_key().decode(),
        "settings": json.dumps({"pexpect_timeout": 1}),
    }
    for name, content in files.items():
        (data / "env" / name).write_text(content, encoding="utf-8")
    (data / "cp").mkdir(exist_ok=True)
    runner = [sys.executable, "-m", "ansible_runner", "run", str(data), "-p", "check.yml"]
    done = subprocess.run(
        [*runner, "--inventory", str(script)],
        cwd=data / "project",
        env=environment(data),
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGING_SECONDS,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_the_inventory_source_is_the_fleet_of_the_project(folder: Path) -> None:
    found = sync(folder)
    assert found["fleet"]["hosts"] == ["main-0", "main-1"]
    variables = found["_meta"]["hostvars"]["main-0"]
    assert variables["ansible_host"] == {"__ansible_unsafe": "127.0.0.1"}
    # The key is in the credential of AWX.
    assert "ansible_ssh_private_key_file" not in variables


def test_a_job_probes_the_fleet_and_forms_the_groups_of_the_run(folder: Path, key: asyncssh.SSHKey) -> None:
    code, text = run_job(folder, key, fleet_inventory=SOURCE)
    assert code == 0, text
    assert "Identity added" in text
    assert "served: main-0." in text
    assert "served: main-1." in text


def test_a_job_with_a_limit_leaves_the_others_out(folder: Path, key: asyncssh.SSHKey) -> None:
    code, text = run_job(folder, key, "-l", "main-0", fleet_inventory=SOURCE)
    assert code == 0, text
    assert "served: main-0." in text
    assert "served: main-1." not in text


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "fleet_inventory: is missing (name the fleet.yml of the project in the extra variables"),
        ({"fleet_inventory": "inventories/none/fleet.yml"}, "there is no such file in the project"),
    ],
)
def test_a_job_without_the_fleet_is_one_error(
    folder: Path, key: asyncssh.SSHKey, variables: dict[str, str], says: str
) -> None:
    code, text = run_job(folder, key, **variables)
    assert code == 2, text
    assert says in text
    assert "PLAY [" not in text
