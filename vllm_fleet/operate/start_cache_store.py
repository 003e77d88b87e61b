"""The start caches that the controller keeps: a record for each key, which names its archive by digest."""

from __future__ import annotations

import fcntl
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.digests import file_sha256
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.foreign_text import clean_text


@dataclass(frozen=True)
class Record:
    """One cache.

    Attributes:
        key: names all that the compiled code depends on.
        sha256: the digest of the archive.
        bytes: the size of the archive.
        host: the host that has compiled it.
        cold_start_seconds: how long the start without a cache took there; None if it is unknown.
    """

    key: str
    sha256: str
    bytes: int
    host: str
    cold_start_seconds: float | None = None


class Store:
    """A folder of records and archives. Several runs may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def archive(self, record: Record) -> Path:
        """Where the archive of a record is."""
        return self.folder / f"{record.sha256}.tar.gz"

    def read_record(self, key: str) -> Record | None:
        """The record of a key; None if it is missing or unreadable."""
        try:
            return Record(**json.loads(self._record_file(key).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError, RecursionError):
            return None

    def verify_archive(self, record: Record) -> bool:
        """Whether the archive of a record exists and has its digest."""
        try:
            return file_sha256(self.archive(record)) == record.sha256
        except FileNotFoundError:
            return False

    def remove_record(self, record: Record) -> bool:
        """Removes a record; one that another run has written since stays.

        Returns:
            Whether it was there.
        """
        if self.read_record(record.key) != record:
            return False
        self._record_file(record.key).unlink(missing_ok=True)
        return True

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Reserves a key for one writer; yields False at once if another one has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f".{key}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    @contextmanager
    def incoming_archive(self) -> Iterator[Path]:
        """A path in the store for an archive on its way; the file is removed unless :meth:`keep` stores it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".incoming-") as folder:
            yield Path(folder) / "archive"

    def keep(self, archive: Path, record: Record) -> None:
        """Takes an archive, and then writes its record: what a record names is complete.

        Raises:
            FleetError: the archive does not have the digest of the record.
        """
        digest = file_sha256(archive)
        if digest != record.sha256:
            told = clean_text(str(record.sha256), 64)
            raise FleetError(
                f"the start cache of {record.host} has the SHA-256 {digest} here and {told} there",
                "run again",
                code=ErrorCode.WORK_FAILED,
            )
        archive.replace(self.archive(record))
        write_atomically(self._record_file(record.key), json.dumps(asdict(record), indent=4, sort_keys=True) + "\n")

    def _record_file(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def describe_start(seconds: float, origin: str, record: Record | None) -> str:
    """One line about a start.

    Args:
        seconds: how long it took.
        origin: ``none``, ``own`` or ``store``: which cache the host had.
        record: the cache, if it came from the store.
    """
    text = f"{seconds:.1f} s to the first completion "
    if origin == "none":
        return f"{text}without a cache"
    if origin == "own" or record is None:
        return f"{text}with its own cache"
    cold = f", which took {record.cold_start_seconds} s without one" if record.cold_start_seconds else ""
    return f"{text}with the cache of {record.host}{cold}"
