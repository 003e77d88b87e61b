"""Lists labs, and removes them by the traces on this machine, so that no Pulumi state is needed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lab import host, network, process, state


@dataclass(frozen=True)
class HostStatus:
    """The state of one host on this machine."""

    lab: str
    owner: str
    name: str
    address: str
    pids: tuple[int, ...]

    def record(self) -> dict[str, Any]:
        """The status as plain data."""
        return {**asdict(self), "pids": list(self.pids)}


def status() -> list[HostStatus]:
    """Every host of every lab of this cache, running or not."""
    hosts = []
    for bridge in state.labs():
        owner = state.read(state.lab_dir(bridge) / "lab.json").get("owner", "")
        for name in state.hosts(bridge):
            folder = state.host_dir(bridge, name)
            address = state.read(folder / "host.json").get("address", "")
            pids = tuple(supervisor.pid for supervisor in process.find(folder / "root"))
            hosts.append(HostStatus(bridge, owner, name, address, pids))
    return hosts


def down(bridge: str) -> None:
    """Removes every process, mount, interface, rule and file of a lab; safe to run again.

    Raises:
        FleetError: something cannot be removed.
    """
    for name in state.hosts(bridge):
        host.delete(bridge, name)
    network.delete(bridge)
