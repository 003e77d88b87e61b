"""A host that gives no answer, in a run of Ansible and in 'vllm-fleet drift': refused, or skipped and named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest
import yaml
from hanging import HANGING_SECONDS
from ssh_servers import Loop

from vllm_fleet.base import paths

#: What a run does before and after the work on hosts, with the work as one task that names its host.
PLAYS = """
- ansible.builtin.import_playbook: {root}/playbooks/probe.yml
- hosts: needs_any
  gather_facts: false
  tasks:
    - ansible.builtin.debug:
        msg: "served: {{{{ inventory_hostname }}}}, drained at {{{{ gateway_traffic_gateways | default([]) | join }}}}."
- ansible.builtin.import_playbook: {root}/playbooks/skipped.yml
"""


@pytest.fixture
def fleet(fleets: Path, tmp_path: Path) -> Iterator[Path]:
    """Two serving hosts and two gateways, of which one each answers."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(str(tmp_path / "id"))
    (tmp_path / "id").chmod(0o600)
    # The machine of a test may run no systemd: 'systemctl show' of units that are not there.
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "systemctl").write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    (tools / "systemctl").chmod(0o755)
    loop = Loop(key, tools)
    server, door = loop.server(), loop.server("127.0.0.3")
    name = f"skip{os.getpid()}"

    def host(number: int, port: int) -> dict[str, object]:
        key = door.key if port == door.port else server.key
        at = {"address": f"127.0.0.{number}", "private_address": f"10.0.0.{number}", "port": port}
        return {**at, "ssh_host_key": key, "user": "root"}

    golden = yaml.safe_load((fleets / "golden" / "fleet.yml").read_text(encoding="utf-8"))
    spec = {
        "fleet": name,
        **{part: golden[part] for part in ("defaults", "artifacts") if part in golden},
        "pools": {
            "main": {
                "host_class": "cpu-2",
                "cloud": "static",
                "static": {"main-0": host(1, server.port), "main-1": host(2, 1)},
            }
        },
        "gateway": {"static": {"gateway-0": host(3, door.port), "gateway-1": host(4, 1)}},
        "access": {"ssh_private_key_file": str(tmp_path / "id")},
    }
    folder = fleets / name
    folder.mkdir()
    shutil.copy(fleets / "golden" / "api-keys.yml", folder)
    (folder / "fleet.yml").write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    (folder / "plays.yml").write_text(PLAYS.format(root=paths.root()), encoding="utf-8")
    yield folder / "fleet.yml"
    loop.stop()
    shutil.rmtree(paths.run_dir(name), ignore_errors=True)


def run(fleet: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        ["ansible-playbook", "-i", str(fleet), str(fleet.parent / "plays.yml"), *words],
        cwd=paths.root(),
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGING_SECONDS,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_a_silent_host_refuses_the_run_before_anything_changes(fleet: Path) -> None:
    code, text = run(fleet)
    assert code == 2, text
    assert "main-1: cannot be reached at 127.0.0.2 port 1" in text
    assert "leave it out with -e fleet_unreachable=skip" in text
    assert "served:" not in text


def test_a_skipped_host_keeps_no_other_from_being_served(fleet: Path) -> None:
    code, text = run(fleet, "-e", "fleet_unreachable=skip")
    assert code == 4, text
    assert "[WARNING]: main-1 is skipped: cannot be reached at 127.0.0.2 port 1" in text
    # The silent gateway is asked by no role, and the silent host gets no task.
    assert "served: main-0, drained at gateway-0." in text
    assert "served: main-1" not in text
    end = text.partition("PLAY [Name the skipped hosts]")[2]
    for name in ("main-1", "gateway-1"):
        assert f"[{name}]: UNREACHABLE!" in end
    assert "was skipped, so it was not changed: cannot be reached at 127.0.0.2 port 1" in end
    recap = end.partition("PLAY RECAP")[2]
    assert "main-1 : ok=0 changed=0 unreachable=1 failed=0" in recap
    assert "main-0 : ok=2 changed=0 unreachable=0 failed=0" in recap


def test_another_word_is_refused(fleet: Path) -> None:
    code, text = run(fleet, "-e", "fleet_unreachable=skpi")
    assert code == 2
    assert "fleet_unreachable is 'skpi': write refuse or skip" in text


def drift(fleet: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "VLLM_FLEET_INVENTORIES": str(fleet.parent.parent)}
    return subprocess.run(
        ["vllm-fleet", "drift", "--fleet", fleet.parent.name, *words],
        cwd=paths.root(),
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGING_SECONDS,
    )


def test_drift_reports_the_living_hosts_beside_the_dead(fleet: Path) -> None:
    done = drift(fleet, "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert {item["host"] for item in report["drift"]} == {"main-0", "gateway-0"}
    assert {row["host"] for row in report["unreachable"]} == {"main-1", "gateway-1"}
    assert all("cannot be reached" in row["why"] for row in report["unreachable"])
    assert (report["hosts"], report["vetoes"]) == (4, [])
    done = drift(fleet)
    assert done.returncode == 1
    assert "main-0: vllm_service:" in done.stdout
    assert "error: main-1: cannot be reached" in done.stderr
    assert drift(fleet, "--json", "--host", "main-0").returncode == 3


def test_the_password_for_sudo_is_asked_at_a_terminal_only(fleet: Path, tmp_path: Path) -> None:
    done = drift(fleet, "-K")
    assert done.returncode == 2
    assert "there is no terminal to ask for the password (give --become-password-file)" in done.stderr
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    done = drift(fleet, "--become-password-file", str(tmp_path / "empty"))
    assert done.returncode == 2
    assert "contains no password of one line" in done.stderr
