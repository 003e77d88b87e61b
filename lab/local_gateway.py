"""A gateway's HAProxy as a process of this machine, from a rendered configuration, without root and without systemd.

Each gateway has a loopback address of its own, so that several can run with the ports of their configuration.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vllm_fleet.base.errors import ErrorCode, FleetError

#: The folders of a gateway host; all of them become the folder of the local one.
_FOLDERS = ("/etc/haproxy", "/run/haproxy", "/run/vllm-gateway-reader")
_UP_SECONDS = 60.0
_LOOK_SECONDS = 0.02
#: A server without health checks has the second state.
_READY = frozenset({"UP", "no check"})


@dataclass(frozen=True)
class LocalGateway:
    """A running gateway.

    Attributes:
        pid: its process.
        admin: its admin socket.
    """

    pid: int
    admin: Path

    def ask(self, command: str) -> str:
        """The answer of the admin socket to one command.

        Raises:
            OSError: HAProxy does not listen there.
        """
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(os.fspath(self.admin))
            channel.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: channel.recv(1 << 16), b"")).decode()

    def states(self) -> dict[str, str]:
        """``backend/server`` -> the state that HAProxy reports for it, such as ``UP``."""
        rows = [line.split(",") for line in self.ask("show stat").splitlines() if line and not line.startswith("#")]
        return {f"{row[0]}/{row[1]}": row[17] for row in rows if row[1] not in ("FRONTEND", "BACKEND")}

    def wait_for_peers(self) -> None:
        """Waits until it is connected to all of its peers.

        Raises:
            FleetError: it is not after a minute.
        """
        deadline = time.monotonic() + _UP_SECONDS
        while "(remote,inactive)" in self.ask("show peers"):
            if time.monotonic() > deadline:
                raise FleetError(
                    f"a gateway has not reached its peers after {_UP_SECONDS:.0f} s", code=ErrorCode.WORK_FAILED
                )
            time.sleep(_LOOK_SECONDS)


def loopback(number: int) -> str:
    """A loopback address that no other process of this project uses now.

    Args:
        number: 1 to 254, another one for each gateway of this process.
    """
    pid = os.getpid()
    return f"127.{64 + (pid >> 8) % 128}.{pid & 255}.{number}"


def move(config: str, folder: Path, address: str) -> str:
    """The configuration with its files in a folder and its ports at an address.

    Args:
        config: a rendered ``haproxy.cfg``.
        folder: takes the place of the folders of a gateway host.
        address: an IPv4 address; ports at any address, and those at 127.0.0.1, are opened at this one.
    """
    for path in _FOLDERS:
        config = config.replace(path, str(folder))
    config = re.sub(r"\bbind (?:\[::\])?:(\d+)(?: v4v6)?", rf"bind {address}:\1", config)
    for port in re.findall(r"\bbind 127\.0\.0\.1:(\d+)", config):
        config = re.sub(rf"\b127\.0\.0\.1:{port}\b", f"{address}:{port}", config)
    return config


def program() -> str:
    """The path of HAProxy.

    Raises:
        FleetError: it is not installed.
    """
    installed = shutil.which("haproxy", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if installed is None:
        raise FleetError("HAProxy is not installed", "run 'make setup'", code=ErrorCode.WORK_FAILED)
    return installed


@contextlib.contextmanager
def running(config: str, folder: Path) -> Iterator[LocalGateway]:
    """Runs HAProxy for the duration of a block, and waits until all of its servers are up.

    Args:
        config: the configuration, as :func:`move` returns it; it has an admin socket at ``FOLDER/admin.sock``.
        folder: an existing folder with the files that the configuration names.

    Raises:
        FleetError: HAProxy ended, or a server is not up after a minute.
    """
    file, log = folder / "haproxy.cfg", folder / "haproxy.log"
    file.write_text(config, encoding="utf-8")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program(), "-db", "-f", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        gateway = LocalGateway(process.pid, folder / "admin.sock")
        _wait_until_up(process, gateway, log)
        yield gateway
    finally:
        process.terminate()
        process.wait()


def _wait_until_up(process: subprocess.Popen[bytes], gateway: LocalGateway, log: Path) -> None:
    deadline = time.monotonic() + _UP_SECONDS
    states: dict[str, str] = {}
    while time.monotonic() < deadline:
        if process.poll() is not None:
            words = log.read_text(encoding="utf-8", errors="replace")[-800:]
            raise FleetError(f"HAProxy ended with {process.returncode}: {words}", code=ErrorCode.WORK_FAILED)
        with contextlib.suppress(OSError):
            states = gateway.states()
        if states and _READY.issuperset(states.values()):
            return
        time.sleep(_LOOK_SECONDS)
    down = ", ".join(server for server, state in states.items() if state not in _READY)
    raise FleetError(
        f"HAProxy is not ready after {_UP_SECONDS:.0f} s, servers that are not up: {down or 'unknown'}",
        code=ErrorCode.WORK_FAILED,
    )
