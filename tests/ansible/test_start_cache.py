"""The start cache: the module on the host, and the action plugin between host and controller."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_module import run_module

from vllm_fleet.base import paths
from vllm_fleet.operate.start_cache_store import Record, Store

KEY = "0123456789abcdef"


def fill(cache: Path, text: str = "compiled") -> None:
    """A cache as an engine leaves it: code, a program, a link, settings of its own, a pipe."""
    (cache / "vllm" / "graphs").mkdir(parents=True)
    (cache / "vllm" / "graphs" / "a.so").write_text(text, encoding="utf-8")
    (cache / "vllm" / "graphs" / "run").write_text("#!/bin/sh\n", encoding="utf-8")
    (cache / "vllm" / "graphs" / "run").chmod(0o755)
    (cache / "vllm" / "latest").symlink_to("graphs/a.so")
    (cache / ".config" / "vllm").mkdir(parents=True)
    (cache / ".config" / "vllm" / "usage").write_text("own", encoding="utf-8")
    os.mkfifo(cache / "vllm" / "pipe")


def tree(folder: Path) -> dict[str, str]:
    """Everything below a folder: name -> content, or target of a link, with its mode."""
    return {
        str(path.relative_to(folder)): f"-> {path.readlink()}"
        if path.is_symlink()
        else f"{path.stat().st_mode & 0o777:o}"
        if path.is_dir()
        else f"{path.stat().st_mode & 0o777:o} {path.read_text(encoding='utf-8')}"
        for path in sorted(folder.rglob("*"))
        if not path.is_fifo()
    }


class TestModule:
    """The host's half."""

    @pytest.fixture
    def cache(self, tmp_path: Path) -> Path:
        fill(tmp_path / KEY)
        return tmp_path / KEY

    def run(self, cache: Path, state: str, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        return run_module("start_cache", cache.parent, {"path": str(cache), "state": state, **arguments}, check=check)

    def pack(self, cache: Path, name: str = "archive") -> tuple[Path, dict[str, Any]]:
        archive = cache.parent / name
        return archive, self.run(cache, "packed", archive=str(archive))

    def test_what_is_packed_comes_back_without_the_settings(self, cache: Path) -> None:
        archive, packed = self.pack(cache)
        assert packed["changed"] is True
        assert packed["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
        assert packed["bytes"] == archive.stat().st_size
        assert archive.stat().st_mode & 0o777 == 0o600
        other = cache.parent / "other"
        result = self.run(other, "unpacked", archive=str(archive), sha256=packed["sha256"])
        assert (result["changed"], result["diff"]) == (True, {"before": "", "after": f"{other}\n"})
        assert tree(other) == {name: text for name, text in tree(cache).items() if not name.startswith(".config")}
        assert other.stat().st_mode & 0o777 == 0o750
        assert not (cache.parent / "other.part").exists()

    def test_the_same_content_gives_the_same_archive(self, cache: Path) -> None:
        _, first = self.pack(cache)
        _, second = self.pack(cache, "second")
        assert first["sha256"] == second["sha256"]

    def test_a_cache_that_is_there_is_never_changed(self, cache: Path) -> None:
        before = tree(cache)
        result = self.run(cache, "unpacked", archive="/nowhere", sha256="0")
        assert (result["changed"], result["exists"], tree(cache)) == (False, True, before)

    def test_an_archive_with_another_digest_is_refused(self, cache: Path) -> None:
        archive, packed = self.pack(cache)
        archive.write_bytes(archive.read_bytes() + b"x")
        other = cache.parent / "other"
        result = self.run(other, "unpacked", archive=str(archive), sha256=packed["sha256"])
        assert result["failed"] is True
        assert "has the SHA-256" in result["msg"]
        assert not other.exists()

    def test_an_archive_that_is_cut_off_leaves_no_cache(self, cache: Path) -> None:
        archive, _ = self.pack(cache)
        archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
        other = cache.parent / "other"
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        assert self.run(other, "unpacked", archive=str(archive), sha256=digest)["failed"] is True
        assert not other.exists()

    @pytest.mark.parametrize(
        ("name", "link"), [("../outside", ""), ("/outside", ""), ("inside", "../../outside"), ("inside", "/etc/passwd")]
    )
    def test_a_name_or_a_link_out_of_the_cache_is_refused(self, tmp_path: Path, name: str, link: str) -> None:
        archive = tmp_path / "archive"
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
        with tarfile.open(archive, "w:gz") as tar:
            tar.addfile(entry, io.BytesIO(b""))
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        result = self.run(tmp_path / "caches" / KEY, "unpacked", archive=str(archive), sha256=digest)
        assert result["failed"] is True
        assert list((tmp_path / "caches").iterdir()) == []

    def test_a_file_below_a_link_is_refused(self, tmp_path: Path) -> None:
        archive = tmp_path / "archive"
        with tarfile.open(archive, "w:gz") as tar:
            folder = tarfile.TarInfo("folder")
            folder.type = tarfile.DIRTYPE
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "folder"
            for entry in (folder, link, tarfile.TarInfo("link/file")):
                tar.addfile(entry, io.BytesIO(b""))
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        result = self.run(tmp_path / KEY, "unpacked", archive=str(archive), sha256=digest)
        assert "outside the cache directory" in result["msg"]

    def test_an_archive_of_gnu_tar_is_unpacked(self, cache: Path) -> None:
        (cache / "vllm" / "same").hardlink_to(cache / "vllm" / "graphs" / "a.so")
        (cache / "vllm" / "pipe").unlink()
        archive = cache.parent / "archive"
        subprocess.run(["tar", "-czf", archive, "-C", cache, "--exclude=./.config", "."], check=True)
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        other = cache.parent / "other"
        assert self.run(other, "unpacked", archive=str(archive), sha256=digest)["changed"] is True
        assert tree(other) == {name: text for name, text in tree(cache).items() if not name.startswith(".config")}

    def test_a_link_out_of_the_cache_is_not_packed(self, cache: Path) -> None:
        (cache / "secret").symlink_to("/etc/passwd")
        (cache / "up").symlink_to("../other")
        archive, _ = self.pack(cache)
        with tarfile.open(archive) as tar:
            assert not {"secret", "up", "vllm/pipe"} & set(tar.getnames())

    def test_check_mode_changes_nothing(self, cache: Path) -> None:
        archive, packed = self.pack(cache)
        before = tree(cache)
        other = cache.parent / "other"
        unpacked = self.run(other, "unpacked", check=True, archive=str(archive), sha256=packed["sha256"])
        removed = self.run(cache, "absent", check=True)
        repacked = self.run(cache, "packed", check=True, archive=str(cache.parent / "second"))
        assert [result["changed"] for result in (unpacked, removed, repacked)] == [True, True, True]
        assert (other.exists(), (cache.parent / "second").exists(), tree(cache)) == (False, False, before)

    def test_absent_removes_it_once(self, cache: Path) -> None:
        result = self.run(cache, "absent")
        assert (result["changed"], result["diff"]) == (True, {"before": f"{cache}\n", "after": ""})
        assert not cache.exists()
        assert self.run(cache, "absent")["changed"] is False

    def test_the_longest_start_counts(self, cache: Path) -> None:
        times = [cache.parent / name for name in ("first", "second")]
        for path, text in zip(times, ("4.5\n", "12.0\n"), strict=True):
            path.write_text(text, encoding="utf-8")
        assert self.run(cache, "inspected", times=[str(path) for path in times])["seconds"] == 12.0
        assert self.run(cache, "inspected")["seconds"] is None
        assert self.run(cache, "inspected", times=["/nowhere"])["failed"] is True


TASKS = """\
- name: Use the cache
  hosts: all
  gather_facts: false
  tasks:
    - name: Restore
      fleet_start_cache:
        path: "{{ path }}"
        store: "{{ store }}"
        state: restored
        exists: "{{ false if known else omit }}"
      register: restored

    - name: Start
      ansible.builtin.command:
        argv: [/bin/sh, -c, "mkdir -p $0/vllm; [ -e $0/vllm/code ] || echo $1 > $0/vllm/code; echo 5.5 > $0.started",
               "{{ path }}", "{{ inventory_hostname }}"]
      when: starts | default(true)
      changed_when: true

    - name: Promote
      fleet_start_cache:
        path: "{{ path }}"
        store: "{{ store }}"
        state: promoted
        origin: "{{ restored.origin }}"
        times: ["{{ path }}.started"]
        seconds: "{{ 7.5 if known else omit }}"
      when: starts | default(true)

    - name: Discard
      fleet_start_cache: {path: "{{ path }}", store: "{{ store }}", state: discarded, origin: "{{ restored.origin }}"}
      when: not (starts | default(true))
"""


class Fleet:
    """Hosts that are folders of this machine, and the store of their controller."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "store")
        (folder / "book.yml").write_text(TASKS, encoding="utf-8")

    def cache(self, host: str) -> Path:
        return self.folder / host / KEY

    def play(
        self, *hosts: str, starts: bool = True, known: bool = False, arguments: Sequence[str] = ()
    ) -> dict[str, dict[str, Any]]:
        """Runs the tasks on hosts; task -> host -> result.

        Args:
            hosts: the hosts.
            starts: whether the start succeeds.
            known: whether the tasks are told that there is no cache, and how long the start took.
            arguments: of ``ansible-playbook``.
        """
        inventory: dict[str, Any] = {}
        for host in hosts:
            self.cache(host).parent.mkdir(exist_ok=True)
            inventory[host] = {"ansible_connection": "local", "path": str(self.cache(host))}
        file = self.folder / "hosts.yml"
        file.write_text(yaml.safe_dump({"all": {"hosts": inventory}}), encoding="utf-8")
        given = {
            "store": str(self.store.folder),
            "starts": starts,
            "known": known,
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        words = [
            "ansible-playbook",
            "-i",
            str(file),
            "-e",
            json.dumps(given),
            *arguments,
            str(self.folder / "book.yml"),
        ]
        environment = {**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
        done = subprocess.run(words, cwd=paths.root(), env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads(done.stdout[done.stdout.index("{") :])
        return {task["task"]["name"]: task["hosts"] for task in report["plays"][0]["tasks"]}

    def code(self, host: str) -> str:
        """Which host has compiled what this one has."""
        return (self.cache(host) / "vllm" / "code").read_text(encoding="utf-8").strip()

    def record(self) -> Record:
        record = self.store.read_record(KEY)
        assert record
        return record


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def test_an_equal_host_gets_what_the_first_has_compiled(fleet: Fleet) -> None:
    first = fleet.play("gpu-0")
    assert first["Restore"]["gpu-0"]["origin"] == {"cache": "none"}
    assert first["Promote"]["gpu-0"]["changed"] is True
    assert first["Promote"]["gpu-0"]["msg"] == "5.5 s to the first completion without a cache"
    record = fleet.record()
    assert (record.host, record.cold_start_seconds) == ("gpu-0", 5.5)
    assert fleet.store.verify_archive(record)

    second = fleet.play("gpu-1")
    assert second["Restore"]["gpu-1"]["changed"] is True
    assert fleet.code("gpu-1") == "gpu-0"
    assert second["Promote"]["gpu-1"]["changed"] is False
    assert second["Promote"]["gpu-1"]["msg"].endswith("with the cache of gpu-0, which took 5.5 s without one")
    assert not list(fleet.folder.glob("*/*.part"))

    again = fleet.play("gpu-0", "gpu-1")
    for host in ("gpu-0", "gpu-1"):
        assert again["Restore"][host]["changed"] is False
        assert again["Restore"][host]["origin"] == {"cache": "own"}
        assert again["Promote"][host]["changed"] is False
        assert again["Promote"][host]["msg"].endswith("with its own cache")
    assert fleet.record() == record


def test_what_is_known_of_a_host_is_not_asked_again(fleet: Fleet) -> None:
    fleet.play("gpu-0", known=True)
    assert fleet.record().cold_start_seconds == 7.5
    second = fleet.play("gpu-1", known=True)
    assert second["Restore"]["gpu-1"]["changed"] is True
    assert second["Promote"]["gpu-1"]["msg"].startswith("7.5 s to the first completion with the cache of gpu-0")


def test_a_cache_that_was_said_to_be_missing_stays(fleet: Fleet) -> None:
    fleet.play("gpu-0")
    fill(fleet.cache("gpu-1"), "its own")
    before = tree(fleet.cache("gpu-1"))
    restored = fleet.play("gpu-1", known=True, starts=False)["Restore"]["gpu-1"]
    assert (restored["changed"], restored["origin"]) == (False, {"cache": "own"})
    assert tree(fleet.cache("gpu-1")) == before


def test_a_cache_from_before_the_start_is_not_kept_since_requests_may_have_changed_it(fleet: Fleet) -> None:
    fill(fleet.cache("gpu-0"), "of a request")
    result = fleet.play("gpu-0")
    assert result["Promote"]["gpu-0"]["changed"] is False
    assert result["Promote"]["gpu-0"]["msg"] == "5.5 s to the first completion with its own cache"
    assert fleet.store.read_record(KEY) is None


def test_a_cache_that_cannot_be_copied_is_a_warning_and_the_host_goes_on(fleet: Fleet) -> None:
    fleet.play("gpu-0")
    record = fleet.record()
    broken = fleet.folder / "broken"
    broken.write_bytes(b"no archive")
    fleet.store.keep(broken, replace(record, sha256=hashlib.sha256(b"no archive").hexdigest()))
    restored = fleet.play("gpu-1")["Restore"]["gpu-1"]
    assert (restored["changed"], restored.get("failed", False)) == (False, False)
    assert restored["warnings"][0].startswith("the start cache was not copied: ")
    assert fleet.code("gpu-1") == "gpu-1"


def test_one_of_equal_hosts_in_a_batch_is_kept(fleet: Fleet) -> None:
    hosts = ("gpu-0", "gpu-1", "gpu-2")
    result = fleet.play(*hosts)
    changed = [host for host in hosts if result["Promote"][host]["changed"]]
    assert changed == [fleet.record().host]
    assert len(list(fleet.store.folder.glob("*.tar.gz"))) == 1


def test_an_archive_that_was_changed_is_not_used_and_is_replaced(fleet: Fleet) -> None:
    fleet.play("gpu-0")
    record = fleet.record()
    archive = fleet.store.archive(record)
    archive.write_bytes(archive.read_bytes() + b"x")
    result = fleet.play("gpu-1")
    assert result["Restore"]["gpu-1"]["changed"] is False
    assert "has another digest" in result["Restore"]["gpu-1"]["msg"]
    assert fleet.code("gpu-1") == "gpu-1"
    assert fleet.record().host == "gpu-1"
    assert fleet.store.verify_archive(fleet.record())


def test_a_start_that_fails_with_it_removes_it_here_and_there(fleet: Fleet) -> None:
    fleet.play("gpu-0")
    result = fleet.play("gpu-1", starts=False)
    assert result["Restore"]["gpu-1"]["changed"] is True
    assert result["Discard"]["gpu-1"]["changed"] is True
    assert "the cache of gpu-0 was used and is removed: run again" in result["Discard"]["gpu-1"]["msg"]
    assert not fleet.cache("gpu-1").exists()
    assert fleet.store.read_record(KEY) is None


def test_a_start_that_fails_leaves_a_cache_that_was_there_before(fleet: Fleet) -> None:
    fleet.play("gpu-0")
    result = fleet.play("gpu-0", starts=False)
    assert result["Discard"]["gpu-0"]["changed"] is False
    assert fleet.code("gpu-0") == "gpu-0"
    assert fleet.record().host == "gpu-0"


def test_check_mode_and_diff_change_nothing(fleet: Fleet) -> None:
    fleet.play("gpu-0")
    before = fleet.record()
    result = fleet.play("gpu-1", starts=False, arguments=("--check", "--diff"))
    restored = result["Restore"]["gpu-1"]
    assert restored["changed"] is True
    assert re.search(rf"of gpu-0, {before.bytes} bytes, {before.sha256}$", restored["diff"]["after"].strip())
    assert result["Discard"]["gpu-1"]["changed"] is True
    assert not fleet.cache("gpu-1").exists()
    assert fleet.record() == before
