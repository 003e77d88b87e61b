"""Folders that are built once: under a lock, and renamed into place when they are complete."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_fleet.base.paths import cache_dir

_UNUSED_DAYS = 14


def say(message: str) -> None:
    """Writes one line of progress to stderr."""
    print(f"lab: {message}", file=sys.stderr, flush=True)


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """Holds the build lock of that name; a second build waits for the first.

    The kernel releases the lock when its process ends, so a killed build blocks no other.
    """
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another build of the {name} is under way, waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build_once(name: str, target: Path, is_there: Callable[[Path], bool], make: Callable[[Path], None]) -> Path:
    """Builds a folder unless it exists; it appears only when it is complete.

    Args:
        name: what is built, for the lock and the progress.
        target: its path.
        is_there: whether the folder at ``target`` can be used.
        make: fills an empty folder beside ``target``; if it raises, ``target`` is unchanged.

    Returns:
        ``target``.
    """
    if is_there(target):
        # Used now: see remove_unused.
        os.utime(target)
        return target
    with only_one(name):
        if is_there(target):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        for left_over in target.parent.glob(f".{target.name}.*"):
            shutil.rmtree(left_over)
        draft = target.parent / f".{target.name}.{os.getpid()}"
        draft.mkdir()
        try:
            make(draft)
            if target.exists():
                shutil.rmtree(target)
            draft.rename(target)
        finally:
            if draft.exists():
                shutil.rmtree(draft)
    return target


def remove_unused(target: Path) -> None:
    """Removes builds of other versions of the project, gigabytes each, that were not used for two weeks.

    Args:
        target: the result of :func:`build_once`; the folders beside it are other versions of it.
    """
    since = time.time() - _UNUSED_DAYS * 86400
    for other in target.parent.iterdir():
        if other != target and other.is_dir() and not other.is_symlink() and other.stat().st_mtime < since:
            say(f"removing {other.name}, unused for {_UNUSED_DAYS} days")
            shutil.rmtree(other)
