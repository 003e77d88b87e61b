"""Stands in for package indexes: the one that everybody uses and one with ROCm builds, in the form of PEP 691.

The ROCm index cannot be reached from here. Its form is that of the guide: a ``vllm`` with ``+rocm700`` in its version,
for Python 3.12 alone and glibc 2.35, beside a ``torch`` for HIP; the other index has the CUDA build of the same release
for any Python. The wheels hold just what the proof of an engine asks for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import small_wheels

from lab import web

_PLATFORM = """
class Platform:
    device_type = ""
    is_rocm = is_cuda = is_cpu = lambda self: False
current_platform = Platform()
"""
ROCM = {
    "vllm-0.14.1+rocm700-cp312-cp312-manylinux_2_35_x86_64.whl": {"vllm/platforms.py": _PLATFORM},
    "torch-2.9.1+rocm7.0-cp312-cp312-linux_x86_64.whl": {},
    "triton-3.5.1+rocm7.0-cp312-cp312-linux_x86_64.whl": {"triton/__init__.py": ""},
}
CUDA = {"vllm-0.14.1-cp38-abi3-manylinux_2_31_x86_64.whl": {"vllm/platforms.py": _PLATFORM}}
OLDER = "triton-3.5.0+rocm7.0-py3-none-linux_x86_64.whl"
#: The same builds for the Python of a lab host, for what comes after the installation.
ANY_PYTHON = {
    name.replace("cp312-cp312", "py3-none"): files for name, files in ROCM.items() if not name.startswith("vllm")
} | {
    "vllm-0.14.1+rocm700-py3-none-manylinux_2_35_x86_64.whl": {"vllm/platforms.py": _PLATFORM},
    OLDER: {"triton/__init__.py": "OLDER = True\n"},
}


def wheel(file: str, files: Mapping[str, str]) -> bytes:
    """A wheel of that name."""
    name, version, _ = file.removesuffix(".whl").split("-", 2)
    content: dict[str, str | bytes] = dict(files)
    needs = ("torch", "triton") if "rocm" in version and name == "vllm" else ()
    scripts = ""
    if name == "vllm":
        content["vllm/__init__.py"] = f"__version__ = {version!r}\ndef main():\n    print({version!r})\n"
        scripts = "[console_scripts]\nvllm = vllm:main\n"
    if name == "torch":
        content["torch/__init__.py"] = f"from torch import version\n__version__ = {version!r}\n"
        content["torch/version.py"] = "cuda, hip = None, '7.0.51831'\n"
    return small_wheels.pack(file, content, needs, scripts)


@dataclass
class Indexes:
    """The addresses of the indexes, and what was fetched from them."""

    base: str
    fetched: list[str] = field(default_factory=list)

    @property
    def rocm(self) -> str:
        return f"{self.base}/rocm/simple"

    @property
    def rocm_any_python(self) -> str:
        return f"{self.base}/any/simple"

    @property
    def cuda(self) -> str:
        return f"{self.base}/cuda/simple"


@contextmanager
def serving(address: str = "127.0.0.1") -> Iterator[Indexes]:
    """Serves the indexes until the block ends."""
    shelves = {
        shelf: {file: wheel(file, files) for file, files in wheels.items()}
        for shelf, wheels in (("rocm", ROCM), ("cuda", CUDA), ("any", ANY_PYTHON))
    }
    found = Indexes("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shelf, kind, *rest = self.path.strip("/").split("/")
            wheels = shelves.get(shelf, {})
            if kind == "files" and rest and (content := wheels.get(rest[0].replace("%2B", "+"))):
                if self.command == "GET":
                    found.fetched.append(rest[0])
                self._say(content, "application/octet-stream")
                return
            files = [self._file(shelf, name, content) for name, content in wheels.items() if name.split("-")[0] in rest]
            if not files:
                self.send_error(404)
                return
            page = {"meta": {"api-version": "1.1"}, "name": rest[0], "files": files}
            self._say(json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json")

        do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

        def _file(self, shelf: str, name: str, content: bytes) -> dict[str, Any]:
            dated = {"upload-time": "2026-01-20T00:00:00Z"} if shelf == "cuda" else {}
            digest = {"sha256": hashlib.sha256(content).hexdigest()}
            return {"filename": name, "url": f"{found.base}/{shelf}/files/{name}", "hashes": digest, **dated}

        def _say(self, content: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Keeps the test's output clean."""

    with web.serving(Handler, address) as found.base:
        yield found
