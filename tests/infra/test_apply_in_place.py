"""Two new lab hosts, one set up in place and one by the tasks of the roles: both are the same afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hanging import HANGING_SECONDS

from bench import lab_fleet
from bench.lab_fleet import LabFleet
from lab import state
from vllm_fleet.base import paths
from vllm_fleet.operate import drift

pytestmark = [pytest.mark.root, pytest.mark.network]
FLEET = "test-apply"
IN_PLACE, BY_TASKS = lab_fleet.names(2)
BOOKS = ("probe.yml", "record.yml", "apply.yml")
#: What the roles write is below them.
FOLDERS = ("etc", "usr/local", "opt/vllm", "var/lib/vllm", "var/cache/vllm")
#: What differs between any two hosts, and the record that only one of the books writes.
OWN = ("etc/hostname", "etc/hosts", "etc/machine-id", "etc/ssh", "etc/systemd/network", "etc/vllm-fleet")
UNITS = ("vllm-firewall.service", "vllm-return.timer", "systemd-timesyncd.service")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabFleet]:
    work = tmp_path_factory.mktemp("apply")
    # Its engine is one that other accounts run.
    for folder in (work, *work.parents[:2]):
        folder.chmod(0o755)
    with state.locked("bench"), lab_fleet.running(work, 2) as found:
        found.boot([IN_PLACE, BY_TASKS])
        lab_fleet.write_fleet(work / FLEET, [IN_PLACE, BY_TASKS], found.access, 16)
        try:
            yield found
        finally:
            shutil.rmtree(paths.run_dir(FLEET), ignore_errors=True)


def run(fleet: LabFleet, book: Sequence[Mapping[str, Any]], host: str, *arguments: str) -> str:
    """The output of a playbook on one host."""
    folder = fleet.image.parent
    file = folder / "book.yml"
    file.write_text(json.dumps(book), encoding="utf-8")
    words = ["ansible-playbook", "-i", str(folder / FLEET / "fleet.yml"), str(file), "--limit", host, *arguments]
    environment = {**os.environ, "ANSIBLE_ROLES_PATH": str(paths.root() / "roles")}
    done = subprocess.run(
        words, cwd=paths.root(), env=environment, capture_output=True, text=True, timeout=HANGING_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def apply(fleet: LabFleet, *arguments: str) -> str:
    book = [{"ansible.builtin.import_playbook": str(paths.root() / "playbooks" / name)} for name in BOOKS]
    return run(fleet, book, IN_PLACE, *arguments)


def run_roles(fleet: LabFleet) -> None:
    roles = ({"name": "host_baseline"}, {"name": "vllm_firewall"}, {"name": "vllm_service", "tasks_from": "install"})
    tasks = [{"name": "Run the role", "ansible.builtin.include_role": role} for role in roles]
    run(fleet, [{"hosts": BY_TASKS, "become": True, "gather_facts": False, "tasks": tasks}], BY_TASKS)


def content(file: Path, name: str) -> str:
    """A digest of a file, without the address of its host."""
    return hashlib.sha256(file.read_bytes().replace(lab_fleet.address(name).encode(), b"ADDRESS")).hexdigest()


def look(fleet: LabFleet, name: str) -> dict[str, str]:
    """What is on a host: path -> kind, mode, owner and content; and its accounts, units, table and parameters."""
    root = fleet.root(name)
    found = {}
    for folder in FOLDERS:
        for path in (root / folder).rglob("*"):
            relative = str(path.relative_to(root))
            if relative.startswith(OWN) or "/engines/" in relative or "/models/" in relative:
                continue
            info = path.lstat()
            what = str(path.readlink()) if path.is_symlink() else content(path, name) if path.is_file() else ""
            found[relative] = f"{stat.filemode(info.st_mode)} {info.st_uid} {info.st_gid} {what}"
    for unit in UNITS:
        words = ("systemctl", "show", "--property=ActiveState,UnitFileState,NeedDaemonReload,FragmentPath", unit)
        found[unit] = fleet.run(name, *words)
    table = fleet.run(name, "nft", "--stateless", "list", "table", "inet", "vllm_fleet")
    found["table"] = table.replace(lab_fleet.address(name), "ADDRESS")
    return found


def test_a_host_that_is_set_up_in_place_is_as_the_roles_make_it(fleet: LabFleet) -> None:
    out = apply(fleet, "--diff")
    assert f"{IN_PLACE}: /etc/vllm/firewall.nft" in out
    run_roles(fleet)
    by_tasks, in_place = look(fleet, BY_TASKS), look(fleet, IN_PLACE)
    assert {key: (text, in_place.get(key)) for key, text in by_tasks.items() if in_place.get(key) != text} == {}
    assert set(in_place) == set(by_tasks)


def test_only_the_release_is_left_to_the_roles(fleet: LabFleet) -> None:
    items = json.loads((paths.run_dir(FLEET) / "drift.json").read_text())["hosts"][IN_PLACE]
    assert items
    assert [item for item in items if item["role"] != "vllm_service" or drift.is_installed_once(item)] == []


def test_again_it_changes_nothing(fleet: LabFleet) -> None:
    assert "changed=0" in apply(fleet)


def test_in_check_mode_the_tasks_report(fleet: LabFleet) -> None:
    (fleet.root(IN_PLACE) / "etc/sysctl.d/60-vllm-fleet.conf").unlink()
    assert "changed=0" in apply(fleet, "--check")
    assert not (fleet.root(IN_PLACE) / "etc/sysctl.d/60-vllm-fleet.conf").exists()
    apply(fleet)
    assert (fleet.root(IN_PLACE) / "etc/sysctl.d/60-vllm-fleet.conf").exists()


def test_what_cannot_be_written_is_named_and_left_to_the_role(fleet: LabFleet) -> None:
    folder = "/etc/security/limits.d"
    (fleet.root(IN_PLACE) / folder.lstrip("/") / "60-vllm-fleet.conf").unlink()
    fleet.run(IN_PLACE, "mount", "--bind", folder, folder)
    fleet.run(IN_PLACE, "mount", "-o", "remount,bind,ro", folder)
    try:
        assert f"{folder}/60-vllm-fleet.conf was not applied in place" in " ".join(apply(fleet).split())
    finally:
        fleet.run(IN_PLACE, "umount", folder)
