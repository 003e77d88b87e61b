"""The target: one lab host with a real sshd that answers on every loopback address of its own network namespace.

The controller's programs run in that namespace, so N addresses of 127.0.0.0/8 are N hosts to them. Two things differ
from a real fleet: there is no network latency, and N real hosts have N times the processors.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import fleets, measure
from lab import cleanup, host, network, process, rootfs, shell, state
from lab.spec import HostSpec, NetworkSpec
from lab.tree import ensure_tree, tree_digest
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.heartbeat import Heartbeat
from vllm_fleet.edge import keys

_BRIDGE = "vf-bench"
_SUBNET = "10.79.77.0/29"
_ADDRESS = "10.79.77.2"
_NAME = "bench"
#: N hosts have N sshds; the one here must accept as many logins at a time as all of them.
_SSHD = "MaxStartups 2000\n"
_SECONDS = 30.0


@dataclass(frozen=True)
class Target:
    """The running target.

    Attributes:
        root: its root folder.
        pid: its first process.
        host_key: its SSH host key, ``type base64``.
        private_key: the file of the private key that it accepts.
        cpu: the file that counts its CPU time; None without one.
    """

    root: Path
    pid: int
    host_key: str
    private_key: Path
    cpu: Path | None

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command in the target's network."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *command]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Target]:
    """Boots the target and removes it at the end; removes first what a killed run left.

    Args:
        folder: the folder for the private key.

    Raises:
        FleetError: not root, a tool is missing, or the host did not come up.
    """
    shell.require()
    ensure_tree()
    cleanup.down(_BRIDGE)
    try:
        yield _start(folder)
    finally:
        cleanup.down(_BRIDGE)


def _start(folder: Path) -> Target:
    with Heartbeat("bench: booting the target"):
        private, public = keys.ssh_key_pair()
        private_host, public_host = keys.ssh_key_pair()
        file = folder / "id_ed25519"
        write_atomically(file, private, 0o600)
        network.create(NetworkSpec(bridge=_BRIDGE, subnet=_SUBNET, owner="bench", disk_gib=1))
        spec = HostSpec(
            bridge=_BRIDGE,
            name=_NAME,
            address=_ADDRESS,
            subnet=_SUBNET,
            user=fleets.USER,
            authorised_key=public,
            host_key=public_host,
            tree=tree_digest(),
            peers={},
            binds={},
            disk_gib=1,
        )
        host.create(spec, private_host)
        root = state.host_dir(_BRIDGE, _NAME) / "root"
        init = process.host_init(process.find(root))
        if len(init) != 1:
            raise shell.failed(f"the target has {len(init)} first processes", "run it again")
        target = Target(root, init[0].pid, public_host, file, measure.cpu_stat(init[0].pid))
        _widen_sshd(target, folder)
    return target


def _widen_sshd(target: Target, folder: Path) -> None:
    """Lets the sshd accept as many logins at a time as N of them would."""
    rootfs.write_files(target.root, {"etc/ssh/sshd_config.d/20-bench.conf": rootfs.File(_SSHD)})
    known_hosts = folder / "known_hosts"
    known_hosts.write_text(fleets.known_hosts_text(1, target.host_key), encoding="utf-8")
    ask = (
        *("ssh", "-F", "none", "-i", str(target.private_key), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"),
        *("-o", f"UserKnownHostsFile={known_hosts}", f"{fleets.USER}@{fleets.address(1)}"),
        "sudo -n systemctl reload ssh.service && sudo -n sshd -T | grep -i ^maxstartups",
    )
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            answer = shell.run(*target.inside(ask), timeout_seconds=_SECONDS)
            break
        except FleetError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    if "2000" not in answer:
        raise shell.failed(f"the sshd of the target still has {answer.strip()!r}", "see sshd_config in its tree")
