"""An HTTP proxy as sites have one: ``CONNECT`` for https, absolute URLs for http (RFC 9110, 9.3.6; RFC 9112, 3.2.2)."""

from __future__ import annotations

import http.client
import http.server
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

#: Of one connection only (RFC 9110, 7.6.1).
_HOP_BY_HOP = ("connection", "keep-alive", "proxy-connection", "proxy-authorization", "te", "upgrade")
_SECONDS = 120.0


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _SECONDS
    asked: list[str]

    def do_CONNECT(self) -> None:
        self.asked.append(f"CONNECT {self.path}")
        name, _, port = self.path.rpartition(":")
        try:
            outside = socket.create_connection((name.strip("[]"), int(port)), _SECONDS)
        except OSError as fault:
            self.send_error(502, str(fault))
            return
        self.send_response(200)
        self.end_headers()
        with outside:
            ends = {self.connection: outside, outside: self.connection}
            while ready := select.select(list(ends), [], [], _SECONDS)[0]:
                for end in ready:
                    if not (data := end.recv(1 << 16)):
                        self.close_connection = True
                        return
                    ends[end].sendall(data)
        self.close_connection = True

    def do_GET(self) -> None:
        self.asked.append(self.path)
        url = urlsplit(self.path)
        outside = http.client.HTTPConnection(url.hostname or "", url.port or 80, timeout=_SECONDS)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        try:
            outside.request(self.command, url._replace(scheme="", netloc="").geturl(), headers=headers)
            answer = outside.getresponse()
        except OSError as fault:
            self.send_error(502, str(fault))
            return
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in (*_HOP_BY_HOP, "transfer-encoding", "content-length"):
                self.send_header(name, value)
        body = answer.read()
        self.send_header("Content-Length", answer.headers.get("Content-Length") or str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        outside.close()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """The tests read ``asked``."""


class _Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True


@contextmanager
def forward_proxy(address: str) -> Iterator[tuple[str, list[str]]]:
    """A proxy at an IPv6 address of this machine: its URL, and what it is asked."""
    asked: list[str] = []
    server = _Server((address, 0), type("Handler", (_Handler,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://[{address}]:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
