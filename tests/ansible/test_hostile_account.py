"""The account of vLLM against root: files, links and pipes that it leaves where root reads and writes."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from local_programs import CacheProgram, programs

from vllm_fleet.on_host import probe
from vllm_fleet.operate.rollout.programs import CommandError

pytestmark = pytest.mark.root

#: Any account without privileges does: the modules get its name.
ACCOUNT = "nobody"
KEY = "0123456789abcdef"
SECRET = "root:$y$j9T$secret"
#: It waits until root has made the draft of a cache, and puts a link to another directory there.
SWAP = """
import os, sys
draft, target = sys.argv[1:]
print("waits", flush=True)
while not os.path.isdir(draft):
    pass
os.rename(draft, draft + ".aside")
os.symlink(target, draft)
"""


class Host:
    """A host's directory of caches, which the account owns, and a directory of root."""

    def __init__(self, folder: Path, program: CacheProgram) -> None:
        self.folder, self.program = folder, program
        self.caches = folder / "caches"
        self.cache = self.caches / KEY
        self.of_root = folder / "root"
        self.private = folder / "private"
        self.cache.mkdir(parents=True)
        self.of_root.mkdir(mode=0o755)
        self.private.mkdir(mode=0o700)
        (self.of_root / "config").write_text("of root", encoding="utf-8")
        (self.private / "shadow").write_text(SECRET, encoding="utf-8")
        (self.private / "shadow").chmod(0o600)
        (self.cache / "code").write_text("compiled", encoding="utf-8")

    def own(self) -> None:
        """Hands everything in the directory of caches to the account."""
        for path in (self.caches, *self.caches.rglob("*")):
            shutil.chown(path, ACCOUNT)

    def act(self, work: Callable[[], None]) -> None:
        """Does something as the account."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setgroups([])
                os.setuid(pwd.getpwnam(ACCOUNT).pw_uid)
                work()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0

    def pack(self) -> dict[str, Any]:
        """The program as a rollout calls it, as root."""
        return self.program.pack(self.cache, self.private / "archive")

    def unpack(self, sha256: str) -> bool:
        """The same for the archive."""
        return self.program.unpack(self.cache, self.private / "archive", sha256)

    def packed(self) -> str:
        """Every byte that the archive holds; empty for no archive."""
        if not (self.private / "archive").exists() or not (self.private / "archive").stat().st_size:
            return ""
        with tarfile.open(self.private / "archive") as tar:
            files = [tar.extractfile(entry) for entry in tar if entry.isfile()]
            return "".join(file.read().decode("utf-8", "replace") for file in files if file)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    # Not below pytest's own directory, which only root may enter.
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    folder.chmod(0o755)
    yield Host(folder, CacheProgram(programs(monkeypatch, "here"), ACCOUNT))
    shutil.rmtree(folder)


def test_root_packs_no_file_that_the_account_may_not_read(host: Host) -> None:
    """A hard link to a file of root, as the account can make one where fs.protected_hardlinks is off."""
    (host.cache / "stolen").hardlink_to(host.private / "shadow")
    for path in (host.caches, host.cache, host.cache / "code"):
        shutil.chown(path, ACCOUNT)
    with pytest.raises(CommandError, match=r"cannot be packed: .*Permission denied"):
        host.pack()
    assert SECRET not in host.packed()
    assert (host.private / "archive").read_bytes() == b""


def test_root_packs_no_directory_of_its_own_in_the_place_of_the_cache(host: Host) -> None:
    host.own()

    def link() -> None:
        host.cache.rename(host.caches / "aside")
        host.cache.symlink_to(host.private)

    host.act(link)
    host.pack()
    assert SECRET not in host.packed()


def test_a_link_that_appears_while_root_unpacks_leads_nowhere(host: Host) -> None:
    # It takes long enough to unpack for the other process to see the draft.
    (host.cache / "large").write_bytes(bytes(256 << 20))
    (host.cache / "later").write_text("of vllm", encoding="utf-8")
    host.own()
    digest = host.pack()["sha256"]
    host.program.remove(host.cache)
    words = ["/usr/bin/python3", "-c", SWAP, f"{host.cache}.part", str(host.of_root)]
    with subprocess.Popen(words, user=ACCOUNT, extra_groups=[], stdout=subprocess.PIPE) as attacker:
        assert attacker.stdout
        assert attacker.stdout.readline() == b"waits\n"
        with suppress(CommandError):
            host.unpack(digest)
        attacker.kill()
    assert [path.name for path in host.of_root.iterdir()] == ["config"]
    config = host.of_root / "config"
    assert (config.read_text(encoding="utf-8"), config.owner(), host.of_root.owner()) == ("of root", "root", "root")


def test_what_is_unpacked_is_the_account_s(host: Host) -> None:
    host.own()
    digest = host.pack()["sha256"]
    assert hashlib.sha256((host.private / "archive").read_bytes()).hexdigest() == digest
    host.program.remove(host.cache)
    assert host.unpack(digest)
    assert {path.owner() for path in (host.cache, host.cache / "code")} == {ACCOUNT}


def test_a_sparse_file_and_a_pipe_do_not_keep_root_busy(host: Host) -> None:
    host.own()
    host.act(lambda: os.mkfifo(host.cache / "pipe"))
    assert host.pack()["exists"]

    def grow() -> None:
        with (host.cache / "huge").open("wb") as file:
            file.truncate(1 << 40)

    host.act(grow)
    with pytest.raises(CommandError, match="huge is larger than"):
        host.pack()


def test_the_probe_reads_no_link_no_pipe_and_no_endless_file_of_the_account(host: Host) -> None:
    host.own()
    link, pipe, huge = (host.caches / name for name in ("link", "pipe", "huge"))

    def leave() -> None:
        link.symlink_to(host.private / "shadow")
        os.mkfifo(pipe)
        with huge.open("wb") as file:
            file.truncate(1 << 40)

    host.act(leave)
    for path, state in ((link, "wrong_type"), (pipe, "wrong_type"), (huge, "wrong_content")):
        difference = probe.check_file({"role": "r", "kind": "file", "path": str(path), "sha256": "0" * 64})
        assert difference
        assert difference[0] == state
