"""An HTTP server of files that counts the bytes it sends, at the rate of one uplink for all connections."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

from lab import web

_BLOCK = 256 << 10


@dataclass
class Origin:
    """Files by their paths, and the number of bytes sent.

    Attributes:
        files: path -> content.
        rate: bytes per second of all connections together.
        url: its address.
        sent: the bytes that it has sent.
    """

    files: Mapping[str, bytes]
    rate: float
    url: str = ""
    sent: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._free = 0.0

    def take(self, number: int) -> None:
        """Waits until the uplink has sent that many more bytes."""
        with self._lock:
            self.sent += number
            self._free = max(self._free, time.monotonic()) + number / self.rate
            until = self._free
        time.sleep(max(0.0, until - time.monotonic()))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    origin: Origin

    def log_message(self, *_: Any) -> None:
        """Writes no log: only the bytes count."""

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def _answer(self, *, send: bool) -> None:
        body = self.origin.files.get(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        for begin in range(0, len(body or b"") if send else 0, _BLOCK):
            block = (body or b"")[begin : begin + _BLOCK]
            self.origin.take(len(block))
            self.wfile.write(block)


@contextlib.contextmanager
def serving(origin: Origin, address: str) -> Iterator[Origin]:
    """Serves the origin at an address of this machine and sets its ``url``."""
    with web.serving(type("Handler", (_Handler,), {"origin": origin}), address) as origin.url:
        yield origin
