"""HTTP/2 frames by hand: clients that a library would not be. RFC 9113, and RFC 7541 without its tables."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator, Mapping

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
END_STREAM = ACK = 1
END_HEADERS, PRIORITY_FLAG = 4, 0x20
INITIAL_WINDOW_SIZE = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#: RFC 7541, appendix A: the statuses that the static table has.
_STATUSES = {0x88: 200, 0x89: 204, 0x8A: 206, 0x8B: 304, 0x8C: 400, 0x8D: 404, 0x8E: 500}


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def field(name: str, value: str) -> bytes:
    """A header as a literal that no table learns."""
    return b"\x00" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) < 127:
        return bytes((len(data),)) + data
    left, length = len(data) - 127, bytearray((127,))
    while left > 127:
        length.append(left % 128 + 128)
        left //= 128
    return bytes((*length, left)) + data


def request(
    stream: int,
    path: str,
    headers: Mapping[str, str] = {},
    method: str = "GET",
    body: bytes | None = b"",
    more: Mapping[str, str] = {},
) -> bytes:
    """The frames of a whole request; body None: the request does not end; more: fields that may be there twice."""
    fields = {":method": method, ":scheme": "https", ":authority": "gateway", ":path": path, **headers}
    block = b"".join(field(name, value) for name, value in [*fields.items(), *more.items()])
    if body == b"":
        return frame(HEADERS, END_HEADERS | END_STREAM, stream, block)
    head = frame(HEADERS, END_HEADERS, stream, block)
    return head if body is None else head + frame(DATA, END_STREAM, stream, body)


def status(block: bytes) -> int:
    """The status of an answer; HAProxy writes it first, and plainly."""
    if block[0] in _STATUSES:
        return _STATUSES[block[0]]
    # A literal whose name is at place 8 of the static table, with or without the table learning it.
    assert block[0] in (0x08, 0x48), block[:8]
    assert block[1] == 3, block[:8]
    return int(block[2:5])


class Connection:
    """A connection of HTTP/2 over TLS to a port of this machine."""

    def __init__(self, port: int, source: str, settings: Mapping[int, int] = {}) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(source, 0))
        self.channel = context.wrap_socket(plain, server_hostname="gateway")
        assert self.channel.selected_alpn_protocol() == "h2"
        values = b"".join(struct.pack(">HI", *setting) for setting in settings.items())
        self.channel.sendall(PREFACE + frame(SETTINGS, 0, 0, values))
        self._read = b""

    def send(self, data: bytes) -> bool:
        """Sends frames; False: the other side has closed."""
        try:
            self.channel.sendall(data)
        except (ConnectionError, ssl.SSLError):
            return False
        return True

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Type, flags, stream and payload of the frames that arrive, until the other side closes."""
        while True:
            while len(self._read) < 9 or len(self._read) < 9 + int.from_bytes(self._read[:3], "big"):
                try:
                    data = self.channel.recv(1 << 16)
                except (ConnectionError, ssl.SSLError):
                    data = b""
                if not data:
                    return
                self._read += data
            length = int.from_bytes(self._read[:3], "big")
            kind, flags = self._read[3:5]
            stream = int.from_bytes(self._read[5:9], "big") & 0x7FFFFFFF
            payload, self._read = self._read[9 : 9 + length], self._read[9 + length :]
            yield kind, flags, stream, payload

    def statuses(self, count: int) -> dict[int, int]:
        """Stream -> status, or 499 for a reset, of so many answered streams; fewer if the other side closes."""
        found: dict[int, int] = {}
        for kind, _, stream, payload in self.frames():
            if kind == HEADERS:
                found[stream] = status(payload)
            if kind == RST_STREAM:
                found.setdefault(stream, 499)
            if len(found) == count:
                break
        return found

    def wait_for(self, kind: int) -> bool:
        """Reads frames up to one of this type; False: the other side has closed before."""
        return any(found == kind for found, _, _, _ in self.frames())

    def close(self) -> None:
        """Closes it without a word."""
        self.channel.close()
