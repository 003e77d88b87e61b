"""The inventory plugin as Ansible runs it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hanging import HANGING_SECONDS

from vllm_fleet.base import paths
from vllm_fleet.inventory import ALL_ROLES, HELPERS


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=paths.root(), capture_output=True, text=True, check=False, timeout=HANGING_SECONDS)


def listed(fleet: Path, *more: str) -> dict[str, Any]:
    done = run("ansible-inventory", "-i", str(fleet / "fleet.yml"), "--list", *more)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_hosts_and_groups(fleets: Path) -> None:
    found = listed(fleets / "golden")
    assert found["serving"]["hosts"] == ["lab-0", "lab-1", "rack-a"]
    assert found["gateway"]["hosts"] == ["gateway-0"]
    assert found["pool_rack"]["hosts"] == ["rack-a"]
    assert set(found["fleet"]["hosts"]) == set(found["_meta"]["hostvars"])


def test_every_needs_group_is_there_and_empty_without_a_probe(fleets: Path) -> None:
    found = listed(fleets / "golden")
    children = set(found["all"]["children"])
    for role in (*ALL_ROLES, "any"):
        # A group without hosts is listed under all, and no host is in it.
        assert f"needs_{role}" in children
        assert found.get(f"needs_{role}", {}).get("hosts", []) == []


def test_without_the_probe_every_host_needs_all_of_its_roles(fleets: Path) -> None:
    found = listed(fleets / "golden", "-e", "fleet_probe=false")
    assert set(found["needs_host_baseline"]["hosts"]) == {"lab-0", "lab-1", "rack-a", "gateway-0"}
    assert set(found["needs_vllm_service"]["hosts"]) == {"lab-0", "lab-1", "rack-a"}
    assert found["needs_gateway"]["hosts"] == ["gateway-0"]


def test_host_keys_are_strict_and_known(fleets: Path) -> None:
    done = run("ansible-inventory", "-i", str(fleets / "golden" / "fleet.yml"), "--host", "rack-a")
    variables = json.loads(done.stdout)
    known_hosts = Path(variables["ansible_ssh_common_args"].split("UserKnownHostsFile=")[1])
    assert "[198.51.100.7]:2222 ssh-ed25519 " in known_hosts.read_text(encoding="utf-8")
    assert (variables["ansible_host"], variables["ansible_port"]) == ("198.51.100.7", 2222)
    assert "StrictHostKeyChecking=yes" in (paths.root() / "ansible.cfg").read_text(encoding="utf-8")


def test_values_of_the_inventory_are_never_read_as_templates(fleets: Path) -> None:
    variables = listed(fleets / "golden")["_meta"]["hostvars"]["rack-a"]
    assert variables["vllm_service_release"]["__ansible_unsafe"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("host_class: cpu-2", "host_klass: cpu-2", "fleet.yml:6: pools.lab.host_klass: unknown key"),
        ("hosts: 2", "hosts: 3", "lab-2 is in"),
    ],
)
def test_a_fleet_that_is_wrong_is_one_error_and_exit_2(fleets: Path, old: str, new: str, says: str) -> None:
    path = fleets / "golden" / "fleet.yml"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    done = run("ansible-playbook", "-i", str(path), "site.yml")
    assert done.returncode == 2
    assert says in done.stderr
    assert "PLAY" not in done.stdout


def test_an_inventory_without_a_fleet_ends_the_run(tmp_path: Path) -> None:
    """Every play would run on no host, and the run would end well."""
    hosts = tmp_path / "hosts.yml"
    hosts.write_text("all: {hosts: {gpu-1: {}}}\n")
    for given in (str(hosts), "192.0.2.1,"):
        done = run("ansible-playbook", "-i", given, "site.yml", "--check")
        assert done.returncode != 0
        assert "Could not match supplied host pattern, ignoring: fleet" in done.stderr


def test_the_playbooks_and_the_roles_are_right_by_their_syntax(fleets: Path, tmp_path: Path) -> None:
    # A role that a playbook includes is not read by the check of that playbook: here they are imported.
    imports = [{"ansible.builtin.import_role": {"name": role}} for role in (*ALL_ROLES, *HELPERS)]
    imports.append({"ansible.builtin.import_role": {"name": "model_store", "tasks_from": "await"}})
    (tmp_path / "roles.yml").write_text(json.dumps([{"hosts": "fleet", "tasks": imports}]), encoding="utf-8")
    fleet = str(fleets / "golden" / "fleet.yml")
    done = run("ansible-playbook", "-i", fleet, "--syntax-check", "site.yml", str(tmp_path / "roles.yml"))
    assert done.returncode == 0, done.stderr
