"""Real ``sshd`` processes on loopback, for tests of what only OpenSSH's client and server do together."""

from __future__ import annotations

import shlex
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.tree import ensure_tree

#: Who logs in.
USER = "root"


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
        self,
        address: str = "127.0.0.1",
        options: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
        hosts: str = "",
    ) -> Sshd:
        """Starts one, as root, on an overlay of the lab's tree that has the folder of the test.

        Args:
            address: where it listens.
            options: what differs in its configuration.
            within: the command that runs it in its network; its port is 22 then.
            hosts: lines of its ``/etc/hosts``.
        """
        lower = ensure_tree()
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
        root = home / "root"
        root.mkdir()
        script = [
            f"mount -t tmpfs tmpfs {root}",
            f"mkdir {root}/upper {root}/work {root}/host",
            f"mount -t overlay overlay -o lowerdir={lower},upperdir={root}/upper,workdir={root}/work {root}/host",
            f"cd {root}/host",
            "mount -t proc proc proc",
            "mount --rbind /dev dev",
            f"mkdir -p run/sshd .{self.folder}",
            f"mount --bind {self.folder} .{self.folder}",
            f"printf %s {shlex.quote(hosts)} >> etc/hosts",
            f"exec chroot . /usr/sbin/sshd -D -e -f {home}/sshd_config",
        ]
        log = home / "log"
        with log.open("wb") as out:
            words = [*within, "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", "\n".join(script)]
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        server = Sshd(address, port, public(home / "host_key"), log, process)
        self.running.append(server)
        while "Server listening" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        return server

    def stop(self) -> None:
        """Stops them with all of their connections: the death of its parent ends the first process of a namespace."""
        for server in self.running:
            server.process.kill()
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
