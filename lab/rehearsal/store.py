"""The file of an emulated cloud: its records and what else it keeps, each written alone, so that a change is cheap."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path

_TABLES = (
    "CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, body TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, body TEXT NOT NULL)",
)


class Store:
    """Texts by key, in a file of SQLite that only its owner may read.

    A change is in the file when its call returns: a process that is killed loses nothing, a machine that loses its
    power may. The file is closed between changes as far as a reader sees, so it may be copied at any time that no call
    runs.
    """

    def __init__(self, file: Path) -> None:
        # SQLite gives its journal the mode of the file.
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        self._connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = TRUNCATE")
        # No wait for the disk: what a rehearsal made is worth nothing after a restart of the machine.
        self._connection.execute("PRAGMA synchronous = OFF")
        for statement in _TABLES:
            self._connection.execute(statement)

    def records(self) -> list[str]:
        """All records, in the order in which they were first put."""
        return [body for (body,) in self._connection.execute("SELECT body FROM records ORDER BY rowid")]

    def notes(self) -> Mapping[str, str]:
        """All notes by name."""
        return dict(self._connection.execute("SELECT name, body FROM notes"))

    def put(self, key: str, body: str) -> None:
        """Saves a record; one that exists keeps its place in the order."""
        self._connection.execute(
            "INSERT INTO records VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET body = excluded.body", (key, body)
        )

    def drop(self, key: str) -> None:
        """Removes a record; does nothing without it."""
        self._connection.execute("DELETE FROM records WHERE key = ?", (key,))

    def note(self, name: str, body: str) -> None:
        """Saves a note."""
        self._connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, body))

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()
