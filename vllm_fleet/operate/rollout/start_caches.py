"""The start caches of the hosts of a batch: copied before a start, kept after it, removed with one that failed.

Only a cache that a start has compiled from nothing is kept: requests may have changed an older one, and what is kept is
code that runs on equal hosts. A cache saves time only, so one that cannot be copied is a warning.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import ssh
from vllm_fleet.edge.remote_answer import NO_FILES, Files
from vllm_fleet.facts.rollout_answer import CachePacked, CacheRemoved, CacheUnpacked
from vllm_fleet.host.firewall import ACCOUNT
from vllm_fleet.on_host.start_cache import MAX_BYTES
from vllm_fleet.operate.rollout.hosts import RolloutHost
from vllm_fleet.operate.rollout.programs import Answer, CommandError, Programs
from vllm_fleet.operate.start_cache_store import Record, Store, describe_start

#: Copies at the same time: they share the network of the controller.
_COPIES = 8


@dataclass
class StartCache:
    """What a host has started with.

    Attributes:
        origin: ``own``: its own cache, or it takes part in none; ``store``: a copy of an equal host's; ``none``.
        record: the copy.
        notes: what the user is told.
        warnings: what went wrong.
    """

    origin: Literal["own", "store", "none"] = "own"
    record: Record | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass
class StartCaches:
    """The start caches of the hosts of a batch."""

    programs: Programs
    _copies: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_COPIES))
    _verified: dict[str, asyncio.Task[bool]] = field(default_factory=dict)
    _tried: set[str] = field(default_factory=set)

    async def restore(self, host: RolloutHost) -> StartCache:
        """Copies the cache of an equal host to one that has none; no process of the account may run on it.

        Args:
            host: the host.
        """
        found = StartCache("none")
        async with _as_warning(found, "not copied"):
            store = Store(Path(host.cache_store))
            record = store.read_record(_key(host))
            if record is None:
                return found
            if not await self._verify(store, record):
                # Without the record the first equal host that starts leaves another archive.
                store.remove_record(record)
                found.warnings.append(f"the archive {store.archive(record)} has another digest: it is not used")
                return found
            asked = {"work": "unpack", "sha256": record.sha256, "bytes": record.bytes}
            # One that fails in between may have left anything.
            found.origin = "own"
            async with self._copies:
                done = await self._ask(host, asked, CacheUnpacked, Files(sent=store.archive(record)))
            if done.made:
                found.origin, found.record = "store", record
        return found

    async def keep(self, host: RolloutHost, found: StartCache, seconds: float) -> None:
        """Keeps what a start has compiled, before a request can change it.

        Args:
            host: a host whose start was proven.
            found: what it has started with.
            seconds: how long the start took.
        """
        found.notes.append(describe_start(seconds, found.origin, found.record))
        key = _key(host)
        if found.origin != "none" or key in self._tried:
            return
        # One of the equal hosts of a batch; another run may have been first.
        self._tried.add(key)
        async with _as_warning(found, "not kept for equal hosts"):
            store = Store(Path(host.cache_store))
            with store.claim(key) as claimed:
                if not claimed or store.read_record(key):
                    return
                with store.incoming_archive() as archive:
                    taken = Files(taken=archive, limit_bytes=MAX_BYTES)
                    packed = await self._ask(host, {"work": "pack"}, CachePacked, taken)
                    if packed.exists:
                        record = Record(key, packed.sha256, packed.bytes, host.name, seconds)
                        await asyncio.to_thread(store.keep, archive, record)

    async def discard(self, host: RolloutHost, found: StartCache) -> None:
        """Removes the cache of a start that has failed, here too; one that the host had before stays.

        Args:
            host: the host.
            found: what it has started with.
        """
        if found.origin == "own":
            return
        async with _as_warning(found, "not removed"):
            removed = await self._ask(host, {"work": "remove"}, CacheRemoved)
            if found.record:
                Store(Path(host.cache_store)).remove_record(found.record)
                found.notes.append(f"the start cache of {found.record.host} was used and is removed: run again")
            elif removed.removed:
                found.notes.append("the start cache that it compiled is removed")

    async def _ask(
        self, host: RolloutHost, asked: dict[str, object], kind: type[Answer], files: Files = NO_FILES
    ) -> Answer:
        question = {**asked, "path": host.cache, "owner": ACCOUNT, "group": ACCOUNT}
        return await self.programs.run_packed(host.name, ssh.pack_program("start_cache"), question, kind, files)

    async def _verify(self, store: Store, record: Record) -> bool:
        """Whether an archive is as it was, read once for a batch."""
        if record.sha256 not in self._verified:
            work = asyncio.to_thread(store.verify_archive, record)
            self._verified[record.sha256] = asyncio.ensure_future(work)
        return await self._verified[record.sha256]


def _key(host: RolloutHost) -> str:
    return Path(host.cache).name


@asynccontextmanager
async def _as_warning(found: StartCache, what: str) -> AsyncIterator[None]:
    try:
        yield
    except (CommandError, FleetError, OSError) as fault:
        found.warnings.append(f"the start cache was {what}: {fault}")
