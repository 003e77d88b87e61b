"""The folder of a mirror: which parts are in it, which files they are made of, and how each was when it was verified.

``mirror.json`` in it is the truth; all that is served beside the files (indexes, lists) is made from it.
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


def part_key(kind: str, name: str, *content: Any) -> str:
    """The name of a part, which changes with what it is made of."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return f"{kind}:{name}:{digest}"


@dataclass(frozen=True)
class Artifact:
    """One file of a part, as its origin describes it.

    Attributes:
        path: its place in the mirror.
        sha256: its digest; empty where the origin gives none before the file is there.
        size: its length in bytes.
        source: a URL, or a path on this machine.
        blob: git's own digest of the file, where the origin gives that instead.
    """

    path: str
    sha256: str
    size: int
    source: str = ""
    blob: str = ""


@dataclass(frozen=True)
class Entry:
    """A file that was verified: its digest, and its size and time then."""

    sha256: str
    size: int
    mtime_ns: int

    def is_as_verified(self, path: Path) -> bool:
        """Whether the file has the size and time that it had when it was read."""
        try:
            info = path.stat()
        except OSError:
            return False
        return (info.st_size, info.st_mtime_ns) == (self.size, self.mtime_ns)


@dataclass(frozen=True)
class Index:
    """What ``mirror.json`` says."""

    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: Mapping[str, Entry] = field(default_factory=dict)

    def with_part(self, key: str, files: Mapping[str, Entry]) -> Index:
        """The index with one part more, or with another content of it."""
        return replace(self, parts={**self.parts, key: tuple(sorted(files))}, files={**self.files, **files})

    def without(self, keys: Iterable[str]) -> Index:
        """The index without some parts, and without files that no other part has."""
        gone = set(keys)
        parts = {key: names for key, names in self.parts.items() if key not in gone}
        left = {name for names in parts.values() for name in names}
        return Index(parts, {name: entry for name, entry in self.files.items() if name in left})

    def entries(self, key: str) -> Mapping[str, Entry]:
        """The files of a part; empty where the part is not there."""
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
        """Where a file of the mirror is."""
        return self.directory / path

    def bytes_of(self, path: str) -> bytes:
        """The content of a small file of the mirror.

        Raises:
            FleetError: it is not there.
        """
        try:
            return self.place(path).read_bytes()
        except OSError as fault:
            raise FleetError(
                f"cannot be read: {fault.strerror}", "run 'vllm-fleet mirror' again", str(self.place(path))
            ) from None

    def read(self) -> Index:
        """Its index; an empty one where there is none.

        Raises:
            FleetError: it is no index, or one of another version.
        """
        file = self.directory / INDEX
        try:
            data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Index()
        except (OSError, ValueError) as fault:
            raise FleetError(
                f"is no index of a mirror: {fault}", "remove it; files are verified again", str(file)
            ) from None
        if not isinstance(data, dict) or data.get("version") != VERSION:
            raise FleetError(f"is not of version {VERSION}", "use another folder, or remove it", paths.display(file))
        try:
            entries = {_safe(name): Entry(**each) for name, each in data["files"].items()}
            return Index({key: tuple(names) for key, names in data["parts"].items()}, entries)
        except (KeyError, TypeError, ValueError) as fault:
            raise FleetError(f"is no index of a mirror: {fault!r}", "remove it", paths.display(file)) from None

    def write(self, index: Index) -> None:
        """Keeps the index."""
        write_atomically(self.directory / INDEX, index.text)

    def missing(self, index: Index, keys: Iterable[str]) -> Iterator[str]:
        """The parts that are not there, or whose files are not as they were verified."""
        for key in keys:
            entries = index.entries(key)
            if not entries or not all(entry.is_as_verified(self.place(name)) for name, entry in entries.items()):
                yield key


def _safe(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} leaves the folder")
    return name


def default_directory() -> Path:
    """The mirror of this machine: one for all fleets, since their parts have names of their own."""
    return paths.cache_dir() / "mirror"
