"""Stands in for the model hub and for a package index, which cannot be reached from here: HTTP on the loopback.

What it answers was read in huggingface_hub 1.33.0 (``hf_api.model_info`` and ``list_repo_tree``,
``file_download.get_hf_file_metadata``) and in the simple API of package indexes (PEP 691). It has no Xet: what hf_xet
does with a real hub is not shown by it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from lab import web


@dataclass
class Origin:
    """What it serves, what it counts, and how it misbehaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    #: repository -> commit -> file -> content; files from 1000 bytes on are large ones, with a SHA-256.
    models: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    token: str | None = None
    sent: int = 0
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    #: What came as ``Authorization``, empty for nothing.
    authorizations: list[str] = field(default_factory=list)
    #: path -> after how many bytes the connection is cut, once.
    cuts: dict[str, int] = field(default_factory=dict)
    #: path -> content that is sent in its place, once.
    wrong: dict[str, bytes] = field(default_factory=dict)
    #: path -> URL that the answer leads to.
    redirects: dict[str, str] = field(default_factory=dict)
    url: str = ""

    def bodies(self) -> list[str]:
        """The paths of which content was asked for."""
        return [path for method, path, _ in self.requests if method == "GET" and not path.startswith("/api/")]


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def blob(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    origin: Origin

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def _answer(self, *, send: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.origin.authorizations.append(self.headers.get("Authorization", ""))
        self.origin.requests.append((self.command, path, self.headers.get("Range", "")))
        hub = path.startswith("/api/models/") or "/resolve/" in path
        if path in self.origin.redirects:
            self._send(302, b"", {"Location": self.origin.redirects[path]}, send)
        elif hub and self.origin.token and self.headers.get("Authorization") != f"Bearer {self.origin.token}":
            self._send(401, b"", {}, send)
        elif path.startswith("/api/models/") and "/tree/" in path:
            self._tree(path, send)
        elif path.startswith("/api/models/"):
            self._model(path, send)
        elif "/resolve/" in path:
            repository, _, rest = path[1:].partition("/resolve/")
            commit, _, name = rest.partition("/")
            body = self.origin.models.get(repository, {}).get(commit, {}).get(name)
            if body is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, send)
            else:
                tag = sha256(body) if len(body) >= 1000 else blob(body)
                self._ranged(path, body, {"X-Repo-Commit": commit, "ETag": f'"{tag}"'}, send)
        elif path in self.origin.files:
            self._ranged(path, self.origin.files[path], {}, send)
        else:
            self._send(404, b"", {}, send)

    def _tree(self, path: str, send: bool) -> None:
        repository, _, commit = path.removeprefix("/api/models/").partition("/tree/")
        files = self.origin.models.get(repository, {}).get(commit)
        if files is None:
            self._send(404, b'{"error": "no"}', {"X-Error-Code": "RevisionNotFound"}, send)
            return
        entries = []
        for name, body in files.items():
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(body), "oid": blob(body)}
            if len(body) >= 1000:
                entry["lfs"] = {"oid": sha256(body), "size": len(body), "pointerSize": 130}
            entries.append(entry)
        self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"}, send)

    def _model(self, path: str, send: bool) -> None:
        repository, _, commit = path.removeprefix("/api/models/").partition("/revision/")
        files = self.origin.models.get(repository, {}).get(commit)
        if files is None:
            self._send(404, b'{"error": "no"}', {"X-Error-Code": "RevisionNotFound"}, send)
            return
        siblings = []
        for name, body in files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(body), "blobId": blob(body)}
            if len(body) >= 1000:
                entry["lfs"] = {"sha256": sha256(body), "size": len(body), "pointerSize": 130}
            siblings.append(entry)
        record = {"id": repository, "modelId": repository, "sha": commit, "private": False, "siblings": siblings}
        self._send(200, json.dumps(record).encode(), {"Content-Type": "application/json"}, send)

    def _ranged(self, path: str, body: bytes, headers: dict[str, str], send: bool) -> None:
        kind = "application/vnd.pypi.simple.v1+json" if path.startswith("/simple/") else "application/octet-stream"
        headers |= {"Accept-Ranges": "bytes", "Content-Type": kind}
        if send:
            body = self.origin.wrong.pop(path, body)
        begin = 0
        if asked := self.headers.get("Range"):
            begin = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
        cut = self.origin.cuts.pop(path, None) if send else None
        self._send(206 if asked else 200, body[begin:], headers, send, cut)

    def _send(self, code: int, body: bytes, headers: dict[str, str], send: bool, cut: int | None = None) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send:
            part = body if cut is None else body[:cut]
            self.wfile.write(part)
            self.origin.sent += len(part)
            if cut is not None:
                self.close_connection = True


@contextlib.contextmanager
def serving(origin: Origin, address: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> Iterator[Origin]:
    """The origin while it answers, with TLS where there is a context; its ``url`` is set."""
    with web.serving(type("Handler", (_Handler,), {"origin": origin}), address, context) as origin.url:
        yield origin


def offer(origin: Origin, filename: str, body: bytes) -> str:
    """Adds a wheel to the index; returns its line of a lock."""
    project, version = filename.split("-")[:2]
    origin.files[f"/packages/{filename}"] = body
    page = json.loads(origin.files.get(f"/simple/{project}/", b'{"files": []}'))
    entry = {
        "filename": filename,
        "url": f"/packages/{filename}",
        "hashes": {"sha256": sha256(body)},
        "size": len(body),
    }
    page["files"].append(entry)
    origin.files[f"/simple/{project}/"] = json.dumps(page).encode()
    return f"{project}=={version} --hash=sha256:{sha256(body)}\n"
