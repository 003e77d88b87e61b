"""Records by what is in them, so that a look-up among thousands takes no longer than among ten."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

R = TypeVar("R")


class Index(Generic[R]):
    """Records by the values that a function reads of each."""

    def __init__(self, read: Callable[[R], Iterable[Hashable]]) -> None:
        self._read = read
        self._values: dict[str, tuple[Hashable, ...]] = {}
        self._records: dict[Hashable, dict[str, R]] = {}

    def put(self, key: str, record: R) -> None:
        """Adds a record, or reads one again that has changed."""
        values = tuple(dict.fromkeys(self._read(record)))
        if values != self._values.get(key):
            self.drop(key)
            self._values[key] = values
        for value in values:
            self._records.setdefault(value, {})[key] = record

    def drop(self, key: str) -> None:
        """Removes a record; does nothing without it."""
        for value in self._values.pop(key, ()):
            holders = self._records[value]
            del holders[key]
            if not holders:
                del self._records[value]

    def get(self, value: Hashable) -> list[R]:
        """The records with a value, in the order in which they got it."""
        return list(self._records.get(value, {}).values())
