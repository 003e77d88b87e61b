"""Real ``sshd`` processes on loopback, for tests of what only OpenSSH's client and server do together."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

USER = getpass.getuser()


@dataclass
class Sshd:
    """A running sshd.

    Attributes:
        key: its public host key, ``type base64``.
        log: what it wrote.
    """

    address: str
    port: int
    key: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def known(self) -> str:
        """Its line in a ``known_hosts`` file."""
        return f"[{self.address}]:{self.port} {self.key}\n"

    @property
    def logins(self) -> int:
        """How many logins it has accepted."""
        return self.log.read_text().count("Accepted publickey for")


@dataclass
class Sshds:
    """Starts sshds that let one key in, and stops them."""

    folder: Path
    running: list[Sshd] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.key_file = make_key(self.folder / "id_ed25519")
        (self.folder / "authorized_keys").write_text(public(self.key_file) + "\n")

    def start(
        self, address: str = "127.0.0.1", options: Mapping[str, str] | None = None, within: Sequence[str] = ()
    ) -> Sshd:
        """Starts one.

        Args:
            address: where it listens.
            options: what differs in its configuration.
            within: the command that runs it in its network; its port is 22 then.
        """
        program = shutil.which("sshd", path="/usr/sbin:/usr/bin:/usr/local/sbin")
        assert program, "sshd is missing: install the package openssh-server"
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd separates its privileges, as root
        home = self.folder / f"sshd-{len(self.running)}"
        home.mkdir()
        port = 22 if within else free_port(address)
        settings = {
            "ListenAddress": f"[{address}]:{port}" if ":" in address else f"{address}:{port}",
            "HostKey": str(make_key(home / "host_key")),
            "AuthorizedKeysFile": str(self.folder / "authorized_keys"),
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "yes",
            "MaxStartups": "100",
            **(options or {}),
        }
        lines = [f'{name} "{value}"' if "/" in value else f"{name} {value}" for name, value in settings.items()]
        (home / "sshd_config").write_text("\n".join(lines) + "\n")
        log = home / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*within, program, "-D", "-e", "-f", home / "sshd_config"], stderr=out, start_new_session=True
            )
        server = Sshd(address, port, public(home / "host_key"), log, process)
        self.running.append(server)
        while "Server listening" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        return server

    def stop(self) -> None:
        for server in self.running:
            # Their connections too: Ansible keeps one open for minutes.
            words = ["ps", "--ppid", str(server.process.pid), "-o", "pid="]
            for pid in subprocess.run(words, capture_output=True, text=True, check=False).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGTERM)
            server.process.terminate()
        for server in self.running:
            server.process.wait(30)


def make_key(file: Path, passphrase: str = "") -> Path:
    """A new private key, with its public key beside it."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "", "-f", file],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return file


def public(file: Path) -> str:
    """The public key beside a private key, ``type base64``."""
    return " ".join(Path(f"{file}.pub").read_text().split()[:2])


def certify(authority: Path, key: Path, *arguments: str) -> Path:
    """Signs a public key; the certificate is beside it."""
    subprocess.run(["ssh-keygen", "-q", "-s", authority, "-I", "test", *arguments, f"{key}.pub"], check=True)
    return key.with_name(f"{key.name}-cert.pub")


def free_port(address: str) -> int:
    """A port that nothing listens on."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.bind((address, 0))
        return int(sock.getsockname()[1])
