"""Fills a mirror from the origins or from the directory of another mirror."""

from __future__ import annotations

import fcntl
import json
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.digests import file_sha256
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.edge import download
from vllm_fleet.edge.download import Fetched, Progress
from vllm_fleet.mirror import image_store, wheels
from vllm_fleet.mirror.apt_packages import Debs
from vllm_fleet.mirror.parts import Image, Model, Need
from vllm_fleet.mirror.store import Artifact, Entry, Index, Store, brief
from vllm_fleet.operate import mirror_origins

#: Free space that stays beside the files.
_RESERVE_BYTES = 64 << 20


@dataclass(frozen=True)
class PartResult:
    """What a run did for one part."""

    key: str
    files: int
    bytes: int
    fetched_files: int
    fetched_bytes: int

    def record(self) -> dict[str, Any]:
        """The result as plain data."""
        return {"part": self.key, **{name: value for name, value in vars(self).items() if name != "key"}}


@dataclass(frozen=True)
class Reporter:
    """Receives the progress of a run.

    Attributes:
        say: takes a line of text.
        count: takes the bytes that are there and those that are wanted, of all that was missing.
    """

    say: Callable[[str], None] = lambda _: None
    count: Callable[[int, int], None] = lambda _done, _all: None


SILENT = Reporter()


@contextmanager
def lock_store(store: Store) -> Iterator[None]:
    """Locks a mirror's directory: two runs would write the same parts.

    Raises:
        FleetError: another run holds the lock.
    """
    store.directory.mkdir(parents=True, exist_ok=True)
    with (store.directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FleetError(
                f"another run writes to {store.directory}", "wait for it to end", code=ErrorCode.WORK_FAILED
            ) from None
        yield


def fill_store(
    store: Store,
    needs: Sequence[Need],
    *,
    token: str | None = None,
    refresh: bool = False,
    reporter: Reporter = SILENT,
) -> list[PartResult]:
    """Fetches the missing files of the parts, each file once, and writes the index.

    Args:
        store: the mirror.
        needs: the parts.
        token: the token of the hub.
        refresh: read the package lists of the origins again, also for parts that are complete.
        reporter: receives the progress.

    Raises:
        FleetError: a file cannot be fetched; or there is not enough space for all files, and nothing was fetched.
    """
    index = store.read()
    missing = set(store.missing_parts(index, [need.key for need in needs]))
    refreshed = {need.key for need in needs if refresh and isinstance(need, Debs)}
    listings: dict[str, list[Artifact]] = {}
    for need in needs:
        if need.key in missing | refreshed:
            reporter.say(f"listing the files of {need.key}")
            listings[need.key] = mirror_origins.list_files(need, token)
    known = {name: entry for name, entry in index.files.items() if entry.is_unchanged(store.place(name))}
    wanted: dict[str, Artifact] = {}
    for artifacts in listings.values():
        for artifact in artifacts:
            if not _is_there(store, artifact, known):
                wanted[artifact.path] = artifact
    check_free_space(store.directory, wanted.values(), store)
    count = _byte_counter(wanted.values(), reporter.count)
    results = []
    for need in needs:
        fetched: Mapping[str, Fetched] = {}
        if need.key in listings:
            files = [wanted[artifact.path] for artifact in listings[need.key] if artifact.path in wanted]
            if files:
                reporter.say(f"fetching {need.key}: {len(files)} files, {sum(file.size for file in files)} bytes")
            fetched = mirror_origins.fetch_files(need, files, store, token, count)
            for artifact in files:
                wanted.pop(artifact.path)
            known |= {name: file.entry for name, file in fetched.items()}
            index = index.with_part(need.key, {artifact.path: known[artifact.path] for artifact in listings[need.key]})
            store.write(index)
        entries = index.entries(need.key)
        results.append(
            PartResult(
                need.key,
                len(entries),
                sum(entry.size for entry in entries.values()),
                len(fetched),
                sum(file.received for file in fetched.values()),
            )
        )
    _write_derived(store, index, [need.key for need in needs])
    return results


def verify_store(store: Store, index: Index, say: Callable[[str], None] = lambda _: None) -> list[str]:
    """Reads every byte of a mirror and removes files with a wrong digest; the next run fetches them again.

    Returns:
        The files that were wrong.
    """
    wrong = []
    for name, entry in index.files.items():
        path = store.place(name)
        if not path.is_file() or path.stat().st_size != entry.size or file_sha256(path) != entry.sha256:
            say(f"wrong: {name}")
            path.unlink(missing_ok=True)
            wrong.append(name)
        elif not entry.is_unchanged(path):
            index = replace(index, files={**index.files, name: download.index_entry(path, entry.sha256)})
    store.write(index)
    return wrong


def unpinned_models(needs: Iterable[Need]) -> tuple[str, ...]:
    """The models of the hub whose digests only the mirror itself has."""
    return tuple(need.name for need in needs if isinstance(need, Model) and need.folder is None and not need.files)


def check_pinned_models(source: Store, needs: Iterable[Need]) -> None:
    """Compares the digests that a mirror has for models with those that are known from elsewhere.

    Raises:
        FleetError: it has a file with another digest, or lacks one; nothing was copied.
    """
    index = source.read()
    for need in needs:
        if not isinstance(need, Model) or need.key not in index.parts:
            continue
        entries = index.entries(need.key)
        for name, sha256, _ in need.files:
            entry = entries.get(f"{need.path}/{name}")
            if entry is None or entry.sha256 != sha256:
                raise FleetError(
                    f"has {f'the SHA-256 {entry.sha256}' if entry else 'no file'} for {name} of {need.name}, and the "
                    f"recipe, the fleet's lock or your list has {sha256}",
                    "nothing was copied: the disk was changed, or holds another model; fill it again",
                    paths.display(source.directory),
                    code=ErrorCode.REFUSED,
                )


def copy_parts(
    source: Store, target: Store, keys: Sequence[str], progress: Callable[[int, int], None] = lambda _done, _all: None
) -> list[PartResult]:
    """Copies parts from the directory of one mirror to that of another; verifies each file, and resumes per file.

    Raises:
        FleetError: the source lacks a part or has a file with a wrong digest, or there is not enough space.
    """
    source_index, index = source.read(), target.read()
    lacking = [key for key in keys if key not in source_index.parts]
    if lacking:
        raise FleetError(
            f"{paths.display(source.directory)} lacks {brief(lacking)}",
            "run 'vllm-fleet mirror' for the same fleet where the origins can be reached, then '--to' again",
            code=ErrorCode.REFUSED,
        )
    known = {name: entry for name, entry in index.files.items() if entry.is_unchanged(target.place(name))}
    jobs: dict[str, Artifact] = {}
    for key in keys:
        for name, entry in source_index.entries(key).items():
            artifact = Artifact(name, entry.sha256, entry.size, str(source.place(name)))
            if not _is_there(target, artifact, known):
                jobs[name] = artifact
    check_free_space(target.directory, jobs.values(), target)
    count = _byte_counter(jobs.values(), progress)
    results = []
    for key in keys:
        fetched: dict[str, Fetched] = {}
        for name in source_index.parts[key]:
            if name in jobs:
                fetched[name] = _copy_file(jobs.pop(name), target, count)
                known[name] = fetched[name].entry
        index = index.with_part(key, {name: known[name] for name in source_index.parts[key]})
        target.write(index)
        sizes = [entry.size for entry in index.entries(key).values()]
        results.append(
            PartResult(key, len(sizes), sum(sizes), len(fetched), sum(file.entry.size for file in fetched.values()))
        )
    _write_derived(target, index, keys)
    return results


def _byte_counter(artifacts: Iterable[Artifact], progress: Callable[[int, int], None]) -> Progress:
    """A callback that takes the bytes of each file and reports the sum over all files."""
    total, done = sum(artifact.size for artifact in artifacts), 0
    # Files are fetched by several threads.
    lock = threading.Lock()

    def count(number: int) -> None:
        nonlocal done
        with lock:
            done += number
            progress(done, total)

    return count


def _copy_file(artifact: Artifact, target: Store, progress: Progress) -> Fetched:
    try:
        return download.fetch_file(artifact, target.place(artifact.path), progress)
    except FleetError as fault:
        fault.hint = "run 'vllm-fleet mirror --verify' on the mirror that it comes from, then repeat this command"
        raise
    except OSError as fault:
        raise FleetError(
            f"{artifact.source}: {fault.strerror}", "repair the folder", code=ErrorCode.WORK_FAILED
        ) from None


def check_free_space(directory: Path, artifacts: Iterable[Artifact], store: Store) -> None:
    """Checks the free space before any file is fetched.

    Raises:
        FleetError: there is less than what is missing.
    """
    parts = [(artifact.size, download.partial_file(store.place(artifact.path))) for artifact in artifacts]
    needed = sum(max(0, size - (part.stat().st_size if part.is_file() else 0)) for size, part in parts)
    there = next(parent for parent in (directory, *directory.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed and free < needed + _RESERVE_BYTES:
        raise FleetError(
            f"{needed / 2**30:.2f} GiB are missing in {directory}, and {free / 2**30:.2f} GiB are free there",
            "free some space, or name a folder on a larger disk with --directory",
            code=ErrorCode.REFUSED,
        )


def _write_derived(store: Store, index: Index, keys: Iterable[str]) -> None:
    """Writes what is served beside the files: the wheel index, the list of each model, the links of each image."""
    for key in keys:
        kind, _, rest = key.partition(":")
        if kind == "model":
            name, _, revision = rest.rpartition(":")
            entries = index.entries(key)
            folder = next(iter(entries)).rsplit("/", 1)[0]
            _write_model_list(
                store, name, revision, folder, {path.rsplit("/", 1)[1]: entry for path, entry in entries.items()}
            )
        if kind == "image":
            image = Image.from_key(key)
            for place, digest in image_store.repository_links(
                image.name, image.digest, image.platform, store.read_bytes
            ):
                _write(store.place(place), digest)
    for path, text in wheels.index_pages({name: entry.sha256 for name, entry in index.files.items()}).items():
        _write(store.place(path), text)


def _write_model_list(store: Store, name: str, revision: str, folder: str, files: Mapping[str, Entry]) -> None:
    listed = {file: {"sha256": entry.sha256, "size": entry.size} for file, entry in sorted(files.items())}
    text = json.dumps({"name": name, "revision": revision, "files": listed}, indent=2) + "\n"
    _write(store.place(f"{folder}/model.json"), text)


def _write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)


def _is_there(store: Store, artifact: Artifact, known: dict[str, Entry]) -> bool:
    """Whether the mirror has the wanted file. A file with another time is read again."""
    entry = known.get(artifact.path)
    if entry:
        return not artifact.sha256 or entry.sha256 == artifact.sha256
    path = store.place(artifact.path)
    if not artifact.sha256 or not path.is_file() or path.stat().st_size != artifact.size:
        return False
    if file_sha256(path) != artifact.sha256:
        return False
    known[artifact.path] = download.index_entry(path, artifact.sha256)
    return True
