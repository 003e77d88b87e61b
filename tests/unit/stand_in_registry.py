"""Images for tests, and a registry that wants a token and keeps its blobs elsewhere, as the public ones do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from stand_in_origin import sha256

from lab import web
from vllm_fleet.mirror import image_store

INDEX, _ = image_store.LISTS
MANIFEST, _ = image_store.MANIFESTS


@dataclass(frozen=True)
class Made:
    """A list of platforms with an image for each: digests and bytes."""

    listed: str
    platforms: Mapping[str, str]
    blobs: Mapping[str, bytes]

    def files(self, name: str) -> dict[str, bytes]:
        """What a registry has at which path."""
        found = {"/v2/": b"{}"}
        for digest, body in self.blobs.items():
            for kind in ("manifests", "blobs"):
                found[f"/v2/{name}/{kind}/{digest}"] = body
        return found


def made(layers: Mapping[str, bytes]) -> Made:
    """An image for each platform, of one layer that is its own and one that all have."""
    blobs: dict[str, bytes] = {}

    def add(body: bytes, **more: Any) -> dict[str, Any]:
        digest = f"sha256:{sha256(body)}"
        blobs[digest] = body
        return {"digest": digest, "size": len(body), **more}

    listed = []
    for platform, layer in layers.items():
        system, machine = platform.split("/")
        config = add(json.dumps({"os": system, "architecture": machine}).encode())
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [add(layer), add(b"common")]}
        listed.append(add(json.dumps(manifest).encode(), platform={"os": system, "architecture": machine}))
    top = add(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}).encode())
    return Made(top["digest"], dict(zip(layers, (each["digest"] for each in listed), strict=True)), blobs)


@dataclass
class Guarded:
    """A registry that gives a token to an account, and sends those who ask for a blob to another server."""

    image: Made
    name: str
    account: str
    elsewhere: str
    lasts: int = 300
    tokens: int = 0
    url: str = ""
    #: What came with each request: its path and its authorization.
    asked: list[tuple[str, str]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Guarded

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path, _, _ = self.path.partition("?")
        own = self.headers.get("Authorization", "")
        self.served.asked.append((path, own))
        if path == "/token":
            if own != (f"Basic {self.served.account}" if self.served.account else ""):
                return self._send(403)
            self.served.tokens += 1
            return self._send(200, json.dumps({"token": f"t{self.served.tokens}", "expires_in": self.served.lasts}))
        if own != f"Bearer t{self.served.tokens}":
            words = f'Bearer realm="{self.served.url}/token",service="tests"'
            return self._send(401, headers={"WWW-Authenticate": words})
        if "/blobs/" in path:
            return self._send(307, headers={"Location": f"{self.served.elsewhere}{path}"})
        body = self.served.image.blobs.get(path.rsplit("/", 1)[1])
        return self._send(200, body.decode()) if body else self._send(404)

    def _send(self, code: int, body: str = "", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())


@contextlib.contextmanager
def guarding(served: Guarded) -> Iterator[Guarded]:
    """The registry while it answers; its ``url`` is set."""
    with web.serving(type("Handler", (_Handler,), {"served": served})) as served.url:
        yield served
