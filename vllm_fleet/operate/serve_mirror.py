"""Serves a mirror's directory from this machine until a program ends: files by nginx, images by docker-registry."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from vllm_fleet.base.addresses import host_port
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.mirror import image_store, nginx_config
from vllm_fleet.mirror.store import Store

_POLL_SECONDS = 0.5


def serve_until_ended(store: Store, plan: Plan) -> None:
    """Runs nginx at the mirror's address, and a registry where the mirror has images.

    Raises:
        FleetError: the fleet's mirror is not on this machine, a program is missing, or one failed.
    """
    mirror, parts = plan.spec.mirror, _served_address(plan)
    with tempfile.TemporaryDirectory(prefix="vllm-fleet-mirror-") as state:
        programs = [("nginx", start_nginx(store, host_port(str(parts.hostname), parts.port or 80), Path(state)))]
        try:
            if mirror.registry_port:
                listen = host_port(str(parts.hostname), mirror.registry_port)
                programs.append(("docker-registry", start_registry(store, listen, Path(state))))
            name, code = _first_to_end(programs)
        finally:
            for _, process in programs:
                process.terminate()
                process.wait()
    if code:
        raise FleetError(f"{name} ended with {code}", "its own message is above", code=ErrorCode.WORK_FAILED)


def check_servable(plan: Plan) -> None:
    """Checks what can be checked before the mirror is filled.

    Raises:
        FleetError: the fleet's mirror is not one that this machine can serve, or a program is missing.
    """
    _served_address(plan)
    _find_program("nginx", "nginx-light")
    if plan.spec.mirror.registry_port:
        _find_program("docker-registry", "docker-registry")


def _served_address(plan: Plan) -> SplitResult:
    """The address at which this machine serves the fleet's mirror."""
    mirror = plan.spec.mirror
    if mirror.url is None:
        raise plan.document.error(
            ("mirror", "url"),
            "is missing, so the address to serve at is unknown",
            "give the address of this machine, such as http://10.0.0.5:8070",
        )
    address = urlsplit(mirror.url)
    if address.scheme != "http":
        raise plan.document.error(
            ("mirror", "url"),
            "is https, which --serve does not support",
            "serve the directory with your own web server",
        )
    return address


def _first_to_end(programs: Sequence[tuple[str, subprocess.Popen[bytes]]]) -> tuple[str, int]:
    while True:
        for name, process in programs:
            if (code := process.poll()) is not None:
                return name, code
        time.sleep(_POLL_SECONDS)


def start_nginx(store: Store, listen: str, state: Path, program: str | None = None) -> subprocess.Popen[bytes]:
    """Starts nginx.

    Args:
        store: the mirror.
        listen: address and port.
        state: an empty folder for its configuration, its log and its temporary files.
        program: the path of nginx; None searches for the installed one.

    Raises:
        FleetError: nginx is not installed.
    """
    program = program or _find_program("nginx", "nginx-light")
    file = state / "nginx.conf"
    file.write_text(nginx_config.standalone_config(str(store.directory), listen, str(state)), encoding="utf-8")
    # Its workers run as another user, who needs read permission on the directory.
    return subprocess.Popen([program, "-e", "stderr", "-p", str(state), "-c", str(file)])


def start_registry(store: Store, listen: str, state: Path, program: str | None = None) -> subprocess.Popen[bytes]:
    """Starts a registry that serves the mirror's images read-only.

    Args:
        store: the mirror.
        listen: address and port.
        state: a folder for its configuration and its log.
        program: the path of the registry; None searches for the installed one.

    Raises:
        FleetError: the registry is not installed.
    """
    file = state / "registry.json"
    file.write_text(image_store.registry_config(str(store.place(image_store.FOLDER)), listen), encoding="utf-8")
    command = [program or _find_program("docker-registry", "docker-registry"), "serve", str(file)]
    # It writes a line for each request to stdout.
    with (state / "registry.log").open("w") as log:
        return subprocess.Popen(command, stdout=log)


def _find_program(name: str, package: str) -> str:
    path = shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if path is None:
        raise FleetError(
            f"{name} is not installed on this machine", f"apt-get install {package}", code=ErrorCode.REFUSED
        )
    return path
