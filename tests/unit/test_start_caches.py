"""The start cache: the program on the host, and the work of a batch between hosts and controller."""

from __future__ import annotations

import asyncio
import grp
import hashlib
import io
import os
import pwd
import subprocess
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from local_programs import CacheProgram, programs

from vllm_fleet.operate.rollout import start_caches
from vllm_fleet.operate.rollout.hosts import RolloutHost
from vllm_fleet.operate.rollout.programs import CommandError
from vllm_fleet.operate.rollout.start_caches import StartCache, StartCaches
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


def digest_of(archive: Path) -> str:
    return hashlib.sha256(archive.read_bytes()).hexdigest()


class TestProgram:
    """The half that runs on the host."""

    @pytest.fixture
    def cache(self, tmp_path: Path) -> Path:
        fill(tmp_path / KEY)
        return tmp_path / KEY

    @pytest.fixture
    def program(self, monkeypatch: pytest.MonkeyPatch) -> CacheProgram:
        return CacheProgram(programs(monkeypatch, "here"))

    def test_what_is_packed_comes_back_without_the_settings(self, program: CacheProgram, cache: Path) -> None:
        archive, other = cache.parent / "archive", cache.parent / "other"
        packed = program.pack(cache, archive)
        assert packed == {"exists": True, "sha256": digest_of(archive), "bytes": archive.stat().st_size}
        assert program.unpack(other, archive, packed["sha256"])
        assert tree(other) == {name: text for name, text in tree(cache).items() if not name.startswith(".config")}
        assert other.stat().st_mode & 0o777 == 0o750
        assert not (cache.parent / "other.part").exists()

    def test_an_archive_that_is_larger_than_an_answer_may_be(self, program: CacheProgram, cache: Path) -> None:
        (cache / "large").write_bytes(os.urandom(3 << 20))
        archive, other = cache.parent / "archive", cache.parent / "other"
        assert program.unpack(other, archive, program.pack(cache, archive)["sha256"])
        assert (other / "large").read_bytes() == (cache / "large").read_bytes()

    def test_bytes_that_look_like_marks_are_bytes(self, program: CacheProgram, cache: Path) -> None:
        # An archive has what a file has where it cannot be compressed; a host may write one that it has made up.
        marks = b"\nvllm-fleet-bytes 12\nvllm-fleet-answer-begins\nvllm-fleet-answer-ends\n"
        (cache / "marks").write_bytes(os.urandom(1 << 10) + marks + os.urandom(1 << 10))
        archive, other = cache.parent / "archive", cache.parent / "other"
        assert program.unpack(other, archive, program.pack(cache, archive)["sha256"])
        assert (other / "marks").read_bytes() == (cache / "marks").read_bytes()

    def test_the_same_content_gives_the_same_archive(self, program: CacheProgram, cache: Path) -> None:
        first = program.pack(cache, cache.parent / "first")
        assert first == program.pack(cache, cache.parent / "second")

    def test_a_cache_that_is_there_is_never_changed(self, program: CacheProgram, cache: Path) -> None:
        before, archive = tree(cache), cache.parent / "archive"
        archive.write_bytes(b"other")
        assert not program.unpack(cache, archive, digest_of(archive))
        assert tree(cache) == before

    def test_a_cache_that_is_not_there_is_not_packed(self, program: CacheProgram, tmp_path: Path) -> None:
        assert program.pack(tmp_path / KEY, tmp_path / "archive")["exists"] is False
        assert (tmp_path / "archive").read_bytes() == b""

    def test_an_archive_with_another_digest_is_refused(self, program: CacheProgram, cache: Path) -> None:
        archive, other = cache.parent / "archive", cache.parent / "other"
        packed = program.pack(cache, archive)
        archive.write_bytes(archive.read_bytes() + b"x")
        with pytest.raises(CommandError, match="has the SHA-256"):
            program.unpack(other, archive, packed["sha256"])
        assert not other.exists()

    def test_an_archive_that_is_cut_off_leaves_no_cache(self, program: CacheProgram, cache: Path) -> None:
        archive, other = cache.parent / "archive", cache.parent / "other"
        program.pack(cache, archive)
        archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
        with pytest.raises(CommandError, match="cannot be unpacked"):
            program.unpack(other, archive, digest_of(archive))
        assert not other.exists()

    @pytest.mark.parametrize(
        ("name", "link"), [("../outside", ""), ("/outside", ""), ("inside", "../../outside"), ("inside", "/etc/passwd")]
    )
    def test_a_name_or_a_link_out_of_the_cache_is_refused(
        self, program: CacheProgram, tmp_path: Path, name: str, link: str
    ) -> None:
        archive = tmp_path / "archive"
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
        with tarfile.open(archive, "w:gz") as tar:
            tar.addfile(entry, io.BytesIO(b""))
        with pytest.raises(CommandError, match="cannot be unpacked"):
            program.unpack(tmp_path / "caches" / KEY, archive, digest_of(archive))
        assert list((tmp_path / "caches").iterdir()) == []

    def test_a_file_below_a_link_is_refused(self, program: CacheProgram, tmp_path: Path) -> None:
        archive = tmp_path / "archive"
        with tarfile.open(archive, "w:gz") as tar:
            folder = tarfile.TarInfo("folder")
            folder.type = tarfile.DIRTYPE
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "folder"
            for entry in (folder, link, tarfile.TarInfo("link/file")):
                tar.addfile(entry, io.BytesIO(b""))
        with pytest.raises(CommandError, match="outside the cache directory"):
            program.unpack(tmp_path / KEY, archive, digest_of(archive))

    def test_an_archive_of_gnu_tar_is_unpacked(self, program: CacheProgram, cache: Path) -> None:
        (cache / "vllm" / "same").hardlink_to(cache / "vllm" / "graphs" / "a.so")
        (cache / "vllm" / "pipe").unlink()
        archive, other = cache.parent / "archive", cache.parent / "other"
        subprocess.run(["tar", "-czf", archive, "-C", cache, "--exclude=./.config", "."], check=True)
        assert program.unpack(other, archive, digest_of(archive))
        assert tree(other) == {name: text for name, text in tree(cache).items() if not name.startswith(".config")}

    def test_a_link_out_of_the_cache_is_not_packed(self, program: CacheProgram, cache: Path) -> None:
        (cache / "secret").symlink_to("/etc/passwd")
        (cache / "up").symlink_to("../other")
        program.pack(cache, cache.parent / "archive")
        with tarfile.open(cache.parent / "archive") as tar:
            assert not {"secret", "up", "vllm/pipe"} & set(tar.getnames())

    def test_it_is_removed_once(self, program: CacheProgram, cache: Path) -> None:
        assert program.remove(cache)
        assert not cache.exists()
        assert not program.remove(cache)


@dataclass
class Fleet:
    """Hosts that are folders of this machine, and the store of their controller."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    def cache(self, host: str) -> Path:
        return self.folder / host / KEY

    def play(self, *names: str, starts: bool = True) -> dict[str, StartCache]:
        """Restores the cache of each host that has none, starts it, and keeps or discards its cache.

        Args:
            names: the hosts of a batch.
            starts: whether the start succeeds.
        """
        caches = StartCaches(programs(self.monkeypatch, *names))

        async def one(name: str) -> StartCache:
            host = RolloutHost(
                name, "1" * 16, {}, (), (), {}, cache=str(self.cache(name)), cache_store=str(self.store.folder)
            )
            self.cache(name).parent.mkdir(exist_ok=True)
            found = StartCache() if self.cache(name).is_dir() else await caches.restore(host)
            code = self.cache(name) / "vllm" / "code"
            if not code.exists():
                code.parent.mkdir(parents=True, exist_ok=True)
                code.write_text(name, encoding="utf-8")
            await (caches.keep(host, found, 5.5) if starts else caches.discard(host, found))
            return found

        async def every() -> list[StartCache]:
            return await asyncio.gather(*map(one, names))

        return dict(zip(names, asyncio.run(every()), strict=True))

    def code(self, host: str) -> str:
        """Which host has compiled what this one has."""
        return (self.cache(host) / "vllm" / "code").read_text(encoding="utf-8")

    def record(self) -> Record:
        record = self.store.read_record(KEY)
        assert record
        return record


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    # The account of the tests has a group of its name, as that of the instances has.
    own = pwd.getpwuid(os.geteuid())
    assert grp.getgrgid(own.pw_gid).gr_name == own.pw_name
    monkeypatch.setattr(start_caches, "ACCOUNT", own.pw_name)
    return Fleet(tmp_path, monkeypatch)


def test_an_equal_host_gets_what_the_first_has_compiled(fleet: Fleet) -> None:
    first = fleet.play("gpu-0")["gpu-0"]
    assert (first.origin, first.warnings) == ("none", [])
    assert first.notes == ["5.5 s to the first completion without a cache"]
    record = fleet.record()
    assert (record.host, record.cold_start_seconds) == ("gpu-0", 5.5)
    assert fleet.store.verify_archive(record)

    second = fleet.play("gpu-1")["gpu-1"]
    assert (second.origin, second.record, second.warnings) == ("store", record, [])
    assert fleet.code("gpu-1") == "gpu-0"
    assert second.notes[0].endswith("with the cache of gpu-0, which took 5.5 s without one")
    assert not list(fleet.folder.glob("*/*.part"))

    for found in fleet.play("gpu-0", "gpu-1").values():
        assert (found.origin, found.notes[0][-18:]) == ("own", "with its own cache")
    assert fleet.record() == record


def test_a_cache_that_was_said_to_be_missing_stays(fleet: Fleet) -> None:
    fleet.play("gpu-0")
    fill(fleet.cache("gpu-1"), "its own")
    before = tree(fleet.cache("gpu-1"))
    host = RolloutHost(
        "gpu-1", "", {}, (), (), {}, cache=str(fleet.cache("gpu-1")), cache_store=str(fleet.store.folder)
    )
    found = asyncio.run(StartCaches(programs(fleet.monkeypatch, "gpu-1")).restore(host))
    assert found.origin == "own"
    assert tree(fleet.cache("gpu-1")) == before


def test_a_cache_from_before_the_start_is_not_kept_since_requests_may_have_changed_it(fleet: Fleet) -> None:
    fill(fleet.cache("gpu-0"), "of a request")
    assert fleet.play("gpu-0")["gpu-0"].notes == ["5.5 s to the first completion with its own cache"]
    assert fleet.store.read_record(KEY) is None


def test_a_cache_that_cannot_be_copied_is_a_warning_and_the_host_goes_on(fleet: Fleet) -> None:
    fleet.play("gpu-0")
    broken = fleet.folder / "broken"
    broken.write_bytes(b"no archive")
    fleet.store.keep(broken, replace(fleet.record(), sha256=digest_of(broken), bytes=broken.stat().st_size))
    found = fleet.play("gpu-1")["gpu-1"]
    assert found.origin == "own"
    assert found.warnings[0].startswith("the start cache was not copied: ")
    assert fleet.code("gpu-1") == "gpu-1"


def test_a_store_that_cannot_be_written_is_a_warning(fleet: Fleet) -> None:
    fleet.store.folder.write_text("no folder", encoding="utf-8")
    found = fleet.play("gpu-0")["gpu-0"]
    assert fleet.code("gpu-0") == "gpu-0"
    assert [text.partition(": ")[0] for text in found.warnings] == [
        "the start cache was not copied",
        "the start cache was not kept for equal hosts",
    ]


def test_one_of_equal_hosts_in_a_batch_is_kept(fleet: Fleet) -> None:
    found = fleet.play("gpu-0", "gpu-1", "gpu-2")
    assert {each.origin for each in found.values()} == {"none"}
    assert [each.warnings for each in found.values()] == [[], [], []]
    assert fleet.code(fleet.record().host) == fleet.record().host
    assert len(list(fleet.store.folder.glob("*.tar.gz"))) == 1


def test_an_archive_that_was_changed_is_not_used_and_is_replaced(fleet: Fleet) -> None:
    fleet.play("gpu-0")
    archive = fleet.store.archive(fleet.record())
    archive.write_bytes(archive.read_bytes() + b"x")
    found = fleet.play("gpu-1")["gpu-1"]
    assert "has another digest" in found.warnings[0]
    assert fleet.code("gpu-1") == "gpu-1"
    assert fleet.record().host == "gpu-1"
    assert fleet.store.verify_archive(fleet.record())


def test_a_start_that_fails_with_it_removes_it_here_and_there(fleet: Fleet) -> None:
    fleet.play("gpu-0")
    found = fleet.play("gpu-1", starts=False)["gpu-1"]
    assert (found.origin, found.notes) == ("store", ["the start cache of gpu-0 was used and is removed: run again"])
    assert not fleet.cache("gpu-1").exists()
    assert fleet.store.read_record(KEY) is None


def test_a_start_that_fails_removes_what_it_has_compiled(fleet: Fleet) -> None:
    assert fleet.play("gpu-0", starts=False)["gpu-0"].notes == ["the start cache that it compiled is removed"]
    assert not fleet.cache("gpu-0").exists()


def test_a_start_that_fails_leaves_a_cache_that_was_there_before(fleet: Fleet) -> None:
    fleet.play("gpu-0")
    assert fleet.play("gpu-0", starts=False)["gpu-0"].notes == []
    assert fleet.code("gpu-0") == "gpu-0"
    assert fleet.record().host == "gpu-0"
