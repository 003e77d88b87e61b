"""Runs Debian's docker-registry over a folder, at an address of this machine."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import packages, shell
from vllm_fleet.mirror import image_store


@contextmanager
def serving(storage: Path, address: str) -> Iterator[None]:
    """Serves the images of a storage, read-only and without TLS; its ``registry.log`` lists each request."""
    config = storage / "config.yml"
    config.write_text(image_store.registry_config(str(storage), address), encoding="utf-8")
    with (storage / "registry.log").open("w") as log:
        process = subprocess.Popen([packages.docker_registry(), "serve", config], stdout=log, stderr=log)
    try:
        await_answer(address, process)
        yield
    finally:
        process.terminate()
        process.wait()


def await_answer(address: str, process: subprocess.Popen[bytes]) -> None:
    """Waits until a registry answers.

    Raises:
        FleetError: it has ended.
    """
    while not _answers(address):
        if process.poll() is not None:
            raise shell.failed("docker-registry ended", "its log says why")
        time.sleep(0.2)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/v2/", timeout=2):
            return True
    except urllib.error.HTTPError:
        return True  # it expects TLS
    except OSError:
        return False
