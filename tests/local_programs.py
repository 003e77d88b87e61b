"""Runs programs of ``on_host`` on this machine: everything but the SSH connection is real."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from vllm_fleet.edge import remote_answer, ssh
from vllm_fleet.edge.connection import JumpHosts
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.facts.rollout_answer import CachePacked, CacheRemoved, CacheUnpacked
from vllm_fleet.operate.rollout.programs import Programs


async def run_here(
    target: Target,
    command: str,
    text: str = "",
    jump_hosts: JumpHosts | None = None,
    files: remote_answer.Files = remote_answer.NO_FILES,
) -> str:
    """Takes the place of :func:`vllm_fleet.edge.ssh.run_json`."""
    del jump_hosts
    process = await asyncio.create_subprocess_shell(
        remote_answer.mark_answer(command), stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    output = await remote_answer.exchange(process, target, text.encode(), files)
    return remote_answer.find_answer(target, await process.wait(), output)


def programs(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> Programs:
    """The programs of hosts that are this machine, with the rights of the tests."""
    monkeypatch.setattr(ssh, "run_json", run_here)
    target = Target("here", "localhost", 22, "root", ())
    return Programs(dict.fromkeys(hosts, target), JumpHosts(), patience_seconds=0.0)


class CacheProgram:
    """The program of the start cache.

    Args:
        programs: those of a host ``here``.
        account: who packs and unpacks; empty: the account of the tests.
    """

    def __init__(self, programs: Programs, account: str = "") -> None:
        self._programs, self._account = programs, account

    def _run(self, cache: Path, work: str, kind: Any, files: remote_answer.Files, **known: Any) -> dict[str, Any]:
        asked = {"work": work, "path": str(cache), **known, **({"owner": self._account} if self._account else {})}
        source = ssh.pack_program("start_cache")
        answer = asyncio.run(self._programs.run_packed("here", source, asked, kind, files))
        return dict(answer.model_dump())

    def pack(self, cache: Path, archive: Path) -> dict[str, Any]:
        """Packs a cache into an archive here."""
        return self._run(cache, "pack", CachePacked, remote_answer.Files(taken=archive, limit_bytes=1 << 40))

    def unpack(self, cache: Path, archive: Path, sha256: str) -> bool:
        """Unpacks an archive; whether that made a cache."""
        files = remote_answer.Files(sent=archive)
        size = archive.stat().st_size if archive.exists() else 0
        done = self._run(cache, "unpack", CacheUnpacked, files, sha256=sha256, bytes=size)
        return bool(done["made"])

    def remove(self, cache: Path) -> bool:
        """Removes a cache; whether there was one."""
        return bool(self._run(cache, "remove", CacheRemoved, remote_answer.NO_FILES)["removed"])
