"""Signs of life on standard error while something long runs. Standard library only."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType


class Heartbeat:
    """Prints what runs, how far it is and for how long: in place on a terminal, else a line now and then.

    Attributes:
        note: the latest detail; the working code may change it at any time.
        elapsed_seconds: how long the work took, once it has ended.
    """

    def __init__(self, what: str, every_seconds: float = 15.0) -> None:
        self.what = what
        self.note = ""
        self.elapsed_seconds = 0.0
        self._terminal = sys.stderr.isatty()
        self._every_seconds = 1.0 if self._terminal else every_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._began = time.monotonic()
        self._say(f"{self.what} ...")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self.elapsed_seconds = time.monotonic() - self._began
        self._say(f"{self.what}: {'failed after' if kind else 'done in'} {self.elapsed_seconds:.0f} s")
        if self._terminal:
            sys.stderr.write("\n")

    def _beat(self) -> None:
        while not self._over.wait(self._every_seconds):
            seconds = int(time.monotonic() - self._began)
            self._say(f"{self.what}: {seconds // 60}:{seconds % 60:02d} {self.note}".rstrip())

    def _say(self, line: str) -> None:
        sys.stderr.write(f"\r\x1b[K{line[:110]}" if self._terminal else f"{line}\n")
        sys.stderr.flush()
