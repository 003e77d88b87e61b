"""The folder of a mirror: its parts, the files of each part, and the state of each file when it was verified.

``mirror.json`` is the only record; the package index and the lists in the folder are generated from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import FleetError

INDEX = "mirror.json"
VERSION = 1


def brief(keys: Iterable[str]) -> str:
    """Parts as people know them: without versions and digests, each name once.

    Args:
        keys: of the parts.
    """
    return ", ".join(dict.fromkeys(":".join(key.split(":")[:2]) for key in keys))


def part_key(kind: str, name: str, *content: Any) -> str:
    """The key of a part; it changes with the content of the part."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return f"{kind}:{name}:{digest}"


@dataclass(frozen=True)
class Artifact:
    """One file of a part, as its origin describes it.

    Attributes:
        path: its path in the mirror.
        sha256: its digest; empty where the origin does not publish it.
        size: its length in bytes; 0 where the origin does not publish it.
        source: a URL, or a path on this machine.
        blob: git's digest of the file, where the origin publishes no SHA-256.
        sha1: its SHA-1, where the origin publishes nothing better.
    """

    path: str
    sha256: str
    size: int
    source: str = ""
    blob: str = ""
    sha1: str = ""


@dataclass(frozen=True)
class Entry:
    """A verified file: its digest, and its size and modification time when it was verified."""

    sha256: str
    size: int
    mtime_ns: int

    def is_unchanged(self, path: Path) -> bool:
        """Whether the file still has the size and modification time of its verification."""
        try:
            info = path.stat()
        except OSError:
            return False
        return (info.st_size, info.st_mtime_ns) == (self.size, self.mtime_ns)


@dataclass(frozen=True)
class Index:
    """The content of ``mirror.json``."""

    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: Mapping[str, Entry] = field(default_factory=dict)

    def with_part(self, key: str, files: Mapping[str, Entry]) -> Index:
        """The index with a part added or replaced."""
        return replace(self, parts={**self.parts, key: tuple(sorted(files))}, files={**self.files, **files})

    def without(self, keys: Iterable[str]) -> Index:
        """The index without some parts, and without the files that only they have."""
        removed = set(keys)
        parts = {key: names for key, names in self.parts.items() if key not in removed}
        kept = {name for names in parts.values() for name in names}
        return Index(parts, {name: entry for name, entry in self.files.items() if name in kept})

    def entries(self, key: str) -> Mapping[str, Entry]:
        """The files of a part; empty for a missing part."""
        return {name: self.files[name] for name in self.parts.get(key, ())}

    @property
    def text(self) -> str:
        """The index as JSON."""
        record = {
            "version": VERSION,
            "parts": {key: list(names) for key, names in sorted(self.parts.items())},
            "files": {name: vars(entry) for name, entry in sorted(self.files.items())},
        }
        return json.dumps(record, indent=1) + "\n"


@dataclass(frozen=True)
class Store:
    """A mirror's folder."""

    directory: Path

    def place(self, path: str) -> Path:
        """The location of a file of the mirror on this machine."""
        return self.directory / path

    def read_bytes(self, path: str) -> bytes:
        """The content of a small file of the mirror.

        Raises:
            FleetError: it cannot be read.
        """
        try:
            return self.place(path).read_bytes()
        except OSError as error:
            raise FleetError(
                f"cannot be read: {error.strerror}", "run 'vllm-fleet mirror' again", str(self.place(path))
            ) from None

    def read(self) -> Index:
        """Its index; an empty index for a new mirror.

        Raises:
            FleetError: the file is not an index, or has another version.
        """
        file = self.directory / INDEX
        try:
            data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Index()
        except OSError as error:
            raise FleetError(
                f"cannot be read: {error.strerror}",
                "give the folder of a mirror with --directory, or correct its permissions",
                paths.display(file),
            ) from None
        except (ValueError, RecursionError) as error:
            raise FleetError(
                f"is not the index of a mirror: {error}",
                "remove it and run 'vllm-fleet mirror' again: files are verified again",
                str(file),
            ) from None
        if not isinstance(data, dict) or data.get("version") != VERSION:
            raise FleetError(
                f"has another version than {VERSION}", "use another folder, or remove the file", paths.display(file)
            )
        try:
            entries = {_check_path(name): Entry(**entry) for name, entry in data["files"].items()}
            return Index({key: tuple(names) for key, names in data["parts"].items()}, entries)
        except (KeyError, TypeError, ValueError) as error:
            raise FleetError(
                f"is not the index of a mirror: {error!r}",
                "remove it and run 'vllm-fleet mirror' again: files are verified again",
                paths.display(file),
            ) from None

    def write(self, index: Index) -> None:
        """Writes the index."""
        write_atomically(self.directory / INDEX, index.text)

    def missing_parts(self, index: Index, keys: Iterable[str]) -> Iterator[str]:
        """The parts that are missing, or have a file that changed since its verification."""
        for key in keys:
            entries = index.entries(key)
            if not entries or not all(entry.is_unchanged(self.place(name)) for name, entry in entries.items()):
                yield key


def _check_path(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} is outside the folder")
    return name


def default_directory() -> Path:
    """The folder of this machine's mirror: one for all fleets, because a part's key depends on its content."""
    return paths.cache_dir() / "mirror"
