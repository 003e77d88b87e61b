"""Debian's docker-registry, serving a folder at an address of this machine."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from lab import shell
from vllm_fleet import paths


def program() -> Path:
    """The registry of Debian's package, unpacked and not installed: a package would start a service here."""
    folder = paths.cache_dir() / "tools" / "docker-registry"
    found = folder / "usr" / "bin" / "docker-registry"
    if not found.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "update", "-q"], check=True, capture_output=True)
        subprocess.run(["apt-get", "download", "-q", "docker-registry"], cwd=folder, check=True, capture_output=True)
        (package,) = folder.glob("docker-registry_*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
        package.unlink()
    return found


@contextmanager
def serving(storage: Path, address: str) -> Iterator[None]:
    """Serves the images in a storage, without TLS and for reading only."""
    config = storage / "config.yml"
    settings = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "maintenance": {"readonly": {"enabled": True}, "uploadpurging": {"enabled": False}},
        },
        "http": {"addr": address},
    }
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with (storage / "registry.log").open("w") as log:
        process = subprocess.Popen([program(), "serve", config], stdout=log, stderr=log)
    try:
        while not _answers(address):
            if process.poll() is not None:
                raise shell.failed("docker-registry ended", f"see {storage / 'registry.log'}")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/v2/", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False
