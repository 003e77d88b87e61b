"""versitygw, an S3 server over a folder, built once from its Go module at the pinned version."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hanging import HANGING_SECONDS

from vllm_fleet.base.paths import cache_dir

_MODULE = Path(__file__).with_name("versitygw")
KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "only for these tests", "AWS_REGION": "us-east-1"}


def program() -> Path:
    """The program, built where it is not there yet: a minute or two of CPU."""
    if not (go := shutil.which("go")):
        pytest.skip("there is no Go here, and the S3 server of these tests is built from its Go module")
    digest = hashlib.sha256((_MODULE / "go.sum").read_bytes()).hexdigest()[:12]
    place = cache_dir() / "tools" / f"versitygw-{digest}"
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "versitygw").is_file():
            built = place / "versitygw.new"
            subprocess.run(
                [go, "build", "-o", built, "github.com/versity/versitygw/cmd/versitygw"],
                cwd=_MODULE,
                env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-mod=readonly"},
                check=True,
            )
            built.rename(place / "versitygw")
    return place / "versitygw"


@contextmanager
def serving(folder: Path, bucket: str) -> Iterator[str]:
    """Serves a bucket, a folder below this one, until the block ends; the URL of Pulumi's backend in it."""
    (folder / bucket).mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {"ROOT_ACCESS_KEY": KEYS["AWS_ACCESS_KEY_ID"], "ROOT_SECRET_KEY": KEYS["AWS_SECRET_ACCESS_KEY"]}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [program(), "--port", address, "posix", folder], env={**os.environ, **environment}, stdout=log, stderr=log
        )
        try:
            _await(address, process)
            yield f"s3://{bucket}?endpoint=http://{address}&s3ForcePathStyle=true&region={KEYS['AWS_REGION']}"
        finally:
            process.terminate()
            process.wait()


def _await(address: str, process: subprocess.Popen[bytes]) -> None:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + HANGING_SECONDS
    while not _answers(host, int(port)):
        assert process.poll() is None, "the S3 server ended: server.log says why"
        assert time.monotonic() < deadline, "the S3 server does not answer"
        time.sleep(0.05)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
