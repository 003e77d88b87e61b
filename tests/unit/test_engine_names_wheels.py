"""The fetching of wheels, from a local stand-in for the package index."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from lab import web
from tools.engines import wheels
from tools.engines.releases import Release
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import download


def wheel_bytes() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("vllm/a.py", "A = 1\n")
        archive.writestr("vllm/kernel.so", b"\0VLLM_IN_A_KERNEL\0" * 500)
    return file.getvalue()


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A local stand-in for the package index: one file, with and without a range; and the ranges it was asked for."""
    content, asked = wheel_bytes(), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            asked.append(wanted)
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:])

        def log_message(self, *_: Any) -> None:
            """Keeps the test's output clean."""

    with web.serving(Handler) as url:
        yield f"{url}/x-1-py3-none-any.whl", asked


def release(digest: str) -> Release:
    return Release("1", "x", "1", "x-1-py3-none-any.whl", digest, "cuda", {})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, list[str]]) -> Path:
    monkeypatch.setenv("VLLM_FLEET_CACHE", str(tmp_path))
    published = {"url": server[0], "size": len(wheel_bytes())}
    monkeypatch.setattr(wheels, "_published", lambda _: published)
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    return tmp_path / "wheels"


def test_a_wheel_is_fetched_once_and_its_sources_kept(folder: Path, server: tuple[str, list[str]]) -> None:
    right = release(hashlib.sha256(wheel_bytes()).hexdigest())
    first, second = wheels.sources(right), wheels.sources(right)
    assert first == second
    assert first.files == {"vllm/a.py": "A = 1\n"}
    assert first.binary_names == {"VLLM_IN_A_KERNEL"}
    assert server[1] == [""]
    assert [path.suffix for path in folder.iterdir()] == [".zip"]


def test_a_transfer_goes_on_where_it_stopped(folder: Path, server: tuple[str, list[str]]) -> None:
    folder.mkdir()
    download.partial_file(folder / "x-1-py3-none-any.whl").write_bytes(wheel_bytes()[:100])
    assert wheels.sources(release(hashlib.sha256(wheel_bytes()).hexdigest())).files
    assert server[1] == ["bytes=100-"]


def test_a_wheel_with_another_digest_is_refused_and_not_kept(folder: Path) -> None:
    with pytest.raises(FleetError, match="instead of 0000") as refused:
        wheels.sources(release("0" * 64))
    assert refused.value.exit_code == 1
    assert list(folder.iterdir()) == []


def test_a_transfer_that_stops_early_keeps_what_it_has(
    folder: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "_published", lambda _: {"url": server[0], "size": len(wheel_bytes()) + 1})
    with pytest.raises(FleetError, match="the partial file is kept"):
        wheels.sources(release(hashlib.sha256(wheel_bytes()).hexdigest()))
    assert download.partial_file(folder / "x-1-py3-none-any.whl").read_bytes() == wheel_bytes()
