"""Hosts for ``vllm-fleet init``: a real SSH server each, with the stand-ins of the lab as the tools of the host."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import pytest
from typer.testing import CliRunner

from lab import gpu
from lab.rootfs import write_files
from vllm_fleet.base.errors import FleetError
from vllm_fleet.cli import app
from vllm_fleet.edge.ssh_scan import fingerprint
from vllm_fleet.fleet import plan, service_addresses, stack

ADDRESS = "127.0.0.1"


@dataclass(frozen=True)
class Server:
    """An sshd of a host: where it listens, its key, and the key that opens it."""

    port: int
    fingerprint: str
    key_file: Path

    @property
    def arguments(self) -> list[str]:
        return ["--host", f"root@{ADDRESS}:{self.port}", "--fingerprint", f"{ADDRESS}:{self.port}={self.fingerprint}"]


async def serve(key: asyncssh.SSHKey, client: asyncssh.SSHKey, tools: Path) -> asyncssh.SSHAcceptor:
    environment = {"PATH": f"{tools}/usr/local/bin:/usr/bin:/bin", "ROCM_PATH": f"{tools}/opt/rocm"}

    async def handle(process: asyncssh.SSHServerProcess[str]) -> None:
        pipe = asyncio.subprocess.PIPE
        command = await asyncio.create_subprocess_shell(
            str(process.command), stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=environment
        )
        out, err = await command.communicate()
        process.stdout.write(out.decode())
        process.stderr.write(err.decode())
        process.exit(command.returncode or 0)

    allowed = asyncssh.import_authorized_keys(client.export_public_key().decode())
    return await asyncssh.listen(
        ADDRESS, 0, server_host_keys=[key], authorized_client_keys=allowed, process_factory=handle
    )


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop beside the test: the command under test has its own."""
    beside = asyncio.new_event_loop()
    thread = threading.Thread(target=beside.run_forever)
    thread.start()
    yield beside
    beside.call_soon_threadsafe(beside.stop)
    thread.join()


@pytest.fixture
def start(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> Iterator[object]:
    """Starts the sshd of a host of a class, or of one without GPUs."""
    running: list[asyncssh.SSHAcceptor] = []
    client = asyncssh.generate_private_key("ssh-ed25519")
    key_file = tmp_path / "id_ed25519"
    client.write_private_key(key_file)
    key_file.chmod(0o600)

    def one(sized_class: str | None, kind: str = "ssh-ed25519") -> Server:
        root = tmp_path / f"host-{len(running)}"
        (root / "usr/local/bin").mkdir(parents=True)
        if sized_class:
            write_files(root, gpu.tools(sized_class))
        key = asyncssh.generate_private_key(kind)
        acceptor = asyncio.run_coroutine_threadsafe(serve(key, client, root), loop).result(20)
        running.append(acceptor)
        public = " ".join(key.export_public_key().decode().split()[:2])
        return Server(acceptor.get_port(), fingerprint(public), key_file)

    yield one
    for acceptor in running:
        loop.call_soon_threadsafe(acceptor.close)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(tmp_path / "inventories"))
    serve_at_one_address(monkeypatch.setattr)
    return tmp_path / "inventories"


def serve_at_one_address(replace: Callable[[object, str, object], None]) -> None:
    """Gives each host a service address of its own.

    Every server of these tests is at one loopback address, at which no host could serve another.
    """
    replace(plan.service_addresses, "address_errors", lambda *_: ())
    own = service_addresses.ServiceAddress
    replace(
        stack,
        "resolve_addresses",
        lambda hosts, *_: {
            host.name: own(f"10.9.0.{number}", (f"10.9.0.{number}",)) for number, host in enumerate(hosts, 1)
        },
    )


def init(*arguments: str) -> tuple[int, str]:
    """Exit code and what is told: the text, or the errors."""
    asks = [] if "--asks" in arguments else ["--yes"]
    result = CliRunner().invoke(app, ["init", *(word for word in arguments if word != "--asks"), *asks])
    if isinstance(result.exception, FleetError):
        faults = (result.exception, *result.exception.others)
        return result.exception.exit_code, "\n".join(str(fault) for fault in faults)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout
