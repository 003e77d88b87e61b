"""OpenSSH's sshd on an overlay of the lab's tree, for root: users, shells and sudo rules of its own."""

from __future__ import annotations

import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh
from hanging import HANGING_SECONDS

from lab import tree
from vllm_fleet.edge.ssh_target import Target

ADDRESS = "127.0.0.1"
#: sudo asks each time, also where a login before had answered, and says more than it asks.
_SUDOERS = "Defaults timestamp_timeout=0, lecture=always, !use_pty\n"


@dataclass(frozen=True)
class User:
    """An account of the server.

    Attributes:
        bashrc: what its shell runs first, also for a command over SSH.
        sudo: its rule in sudoers; empty: none.
    """

    name: str
    login_shell: str = "/bin/bash"
    bashrc: str = ""
    password: str = "not-asked"
    sudo: str = ""


@dataclass
class Sshd:
    """The running server."""

    port: int
    host_key: str
    key_file: Path
    log: Path

    def target(self, user: str, become_password: str | None = None) -> Target:
        """The server as the host of a user."""
        keys = (self.host_key,)
        return Target(user, ADDRESS, self.port, user, keys, self.key_file, become_password=become_password)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


def _make_key(file: Path) -> str:
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(str(file))
    file.chmod(0o600)
    return " ".join(key.export_public_key().decode().split()[:2])


@contextmanager
def serve(folder: Path, users: tuple[User, ...]) -> Iterator[Sshd]:
    """Starts a server for these users, who all log in with one key."""
    lower = tree.tree_path(tree.tree_digest())
    assert lower.is_dir(), "make setup"
    root = folder / "root"
    root.mkdir()
    server = Sshd(_free_port(), _make_key(folder / "host_key"), folder / "id", folder / "log")
    client = _make_key(server.key_file)
    config = (
        f"Port {server.port}\nListenAddress {ADDRESS}\nHostKey /etc/test/host_key\n"
        "AuthorizedKeysFile /etc/test/keys\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n"
        "MaxStartups 100\n"
    )
    rules = _SUDOERS + "".join(f"{user.name} {user.sudo}\n" for user in users if user.sudo)
    lines = [
        f"mount -t tmpfs tmpfs {root}",
        f"mkdir {root}/upper {root}/work {root}/host",
        f"mount -t overlay overlay -o lowerdir={lower},upperdir={root}/upper,workdir={root}/work {root}/host",
        f"cd {root}/host",
        "mount -t proc proc proc",
        "mount --rbind /dev dev",
        "mkdir -p etc/test run/sshd",
        f"cp {folder}/host_key etc/test/host_key",
    ]
    for path, text in (("etc/test/keys", client), ("etc/test/config", config), ("etc/sudoers.d/test", rules)):
        lines.append(f"printf %s {shlex.quote(text)} > {path}")
    for user in users:
        lines += [
            f"chroot . useradd --create-home --shell {user.login_shell} {user.name}",
            f"echo {shlex.quote(f'{user.name}:{user.password}')} | chroot . chpasswd",
            f"printf %s {shlex.quote(user.bashrc)} > home/{user.name}/.bashrc",
        ]
    # The server is no whole system: 'systemctl show' of units that are not there.
    lines += ["printf '#!/bin/sh\\nexit 0\\n' > usr/local/sbin/systemctl", "chmod 755 usr/local/sbin/systemctl"]
    lines.append("exec chroot . /usr/sbin/sshd -D -e -f /etc/test/config")
    with server.log.open("w") as log:
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-euc", "\n".join(lines)]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait(server, process)
        yield server
    finally:
        # The death of its parent ends the first process of the namespace, and so all of them.
        process.kill()
        process.wait(30)


def _wait(server: Sshd, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + HANGING_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, server.log.read_text(encoding="utf-8")
        with socket.socket() as attempt:
            if attempt.connect_ex((ADDRESS, server.port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(server.log.read_text(encoding="utf-8"))
