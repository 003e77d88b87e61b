"""Serves a mirror's folder from this machine until it is ended: files with nginx, images with docker-registry."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.mirror import image_store, nginx_config
from vllm_fleet.mirror.store import Store

_LOOK_SECONDS = 0.5


def run(store: Store, plan: Plan) -> None:
    """Runs nginx, and a registry where the mirror carries images, where the fleet's hosts look for them.

    Raises:
        FleetError: the fleet's mirror is not on this machine, a program is missing, or one ended with a fault.
    """
    where = plan.spec.mirror
    if where.url is None:
        raise plan.document.error(
            ("mirror", "url"),
            "does not say where to serve",
            "give the address of this machine, such as http://10.0.0.5:8070",
        )
    parts = urlsplit(where.url)
    if parts.scheme != "http":
        raise plan.document.error(
            ("mirror", "url"), "wants TLS, which --serve does not do", "serve it by means of your own"
        )
    with tempfile.TemporaryDirectory(prefix="vllm-fleet-mirror-") as state:
        served = [("nginx", start(store, f"{parts.hostname}:{parts.port or 80}", Path(state)))]
        try:
            if where.registry_port:
                listen = f"{parts.hostname}:{where.registry_port}"
                served.append(("docker-registry", start_registry(store, listen, Path(state))))
            name, code = _first_to_end(served)
        finally:
            for _, process in served:
                process.terminate()
                process.wait()
    if code:
        raise FleetError(f"{name} ended with {code}", "its own message is above", code="work-failed")


def _first_to_end(served: Sequence[tuple[str, subprocess.Popen[bytes]]]) -> tuple[str, int]:
    while True:
        for name, process in served:
            if (code := process.poll()) is not None:
                return name, code
        time.sleep(_LOOK_SECONDS)


def start(store: Store, listen: str, state: Path, program: str | None = None) -> subprocess.Popen[bytes]:
    """Starts nginx.

    Args:
        store: the mirror.
        listen: address and port.
        state: an empty folder for its configuration, its log and its temporary files.
        program: nginx; None: the one that is installed.

    Raises:
        FleetError: it is not installed.
    """
    program = program or _program("nginx", "nginx-light")
    file = state / "nginx.conf"
    file.write_text(nginx_config.standalone_config(str(store.directory), listen, str(state)), encoding="utf-8")
    # Its workers are another user, who must be able to read the folder's path.
    return subprocess.Popen([program, "-e", "stderr", "-p", str(state), "-c", str(file)])


def start_registry(store: Store, listen: str, state: Path, program: str | None = None) -> subprocess.Popen[bytes]:
    """Starts a registry that serves the mirror's images and takes none.

    Args:
        store: the mirror.
        listen: address and port.
        state: a folder for its configuration and its log.
        program: the registry; None: the one that is installed.

    Raises:
        FleetError: it is not installed.
    """
    file = state / "registry.json"
    file.write_text(image_store.registry_config(str(store.place(image_store.FOLDER)), listen), encoding="utf-8")
    command = [program or _program("docker-registry", "docker-registry"), "serve", str(file)]
    # What is written to stdout is a line for each request.
    with (state / "registry.log").open("w") as log:
        return subprocess.Popen(command, stdout=log)


def _program(name: str, package: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if found is None:
        raise FleetError(f"{name} is not installed on this machine", f"apt-get install {package}", code="refused")
    return found
