"""A controller and a bastion in network namespaces: only the bastion is in the network of the hosts too."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from real_sshd import Sshd, Sshds

#: In their own namespaces: the same in each test.
CONTROLLER_ADDRESS, BASTION_ADDRESS = "10.98.0.1", "10.98.0.2"


@dataclass(frozen=True)
class Bastion:
    """The two namespaces, and the SSH server of the bastion."""

    #: In front of a command that runs on the controller.
    on_controller: tuple[str, ...]
    sshd: Sshd


@contextmanager
def bastion(bridge: str, subnet: str, servers: Sshds, names: dict[str, str]) -> Iterator[Bastion]:
    """A bastion between the controller and the hosts of a lab.

    Args:
        bridge: the lab's bridge.
        subnet: its network, as ``10.79.14``; the bastion is ``.2``.
        servers: starts the SSH server.
        names: host name -> address, which the bastion alone knows.
    """
    controller, door = (f"{bridge}-{name}" for name in ("ctl", "door"))
    try:
        _create_networks(bridge, subnet, controller, door)
        hosts = "".join(f"{address} {name}\n" for name, address in names.items())
        yield Bastion(_inside(controller), servers.start(BASTION_ADDRESS, within=list(_inside(door)), hosts=hosts))
    finally:
        for namespace in (controller, door):
            _signal_all(namespace, signal.SIGTERM)  # connections that ssh keeps open
        servers.stop()
        for namespace in (controller, door):
            subprocess.run(["ip", "netns", "delete", namespace], check=False)


def _inside(namespace: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", namespace)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _signal_all(namespace: str, number: signal.Signals) -> None:
    found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    for pid in found.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), number)


def _create_networks(bridge: str, subnet: str, controller: str, door: str) -> None:
    port = f"{bridge}-p"
    for namespace in (controller, door):
        # Of a run that was killed: a process keeps a namespace that has no name any more, with its end of the cable.
        _signal_all(namespace, signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", namespace], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["ip", "link", "delete", port], stderr=subprocess.DEVNULL, check=False)
    for namespace in (controller, door):
        _ip("netns", "add", namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")
    _ip("-n", controller, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", door)
    _ip("-n", controller, "address", "add", f"{CONTROLLER_ADDRESS}/24", "dev", "eth0")
    _ip("-n", door, "address", "add", f"{BASTION_ADDRESS}/24", "dev", "eth0")
    _ip("-n", door, "link", "add", "eth1", "type", "veth", "peer", "name", port, "netns", str(os.getpid()))
    _ip("link", "set", port, "master", bridge, "up")
    _ip("-n", door, "address", "add", f"{subnet}.2/24", "dev", "eth1")
    for namespace, link in ((controller, "eth0"), (door, "eth0"), (door, "eth1")):
        _ip("-n", namespace, "link", "set", link, "up")
