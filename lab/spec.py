"""The lab's network and hosts as data, and the addresses of a pool's placement."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from vllm_fleet.base.errors import FleetError
from vllm_fleet.schema.cloud import LabPlacement


@dataclass(frozen=True)
class NetworkSpec:
    """A bridge of this machine with NAT to the outside.

    Attributes:
        bridge: the bridge's name, which is the lab's name too: it is unique on a machine.
        subnet: IPv4 network; its first address is the bridge's, the hosts' gateway.
        owner: the folder of the lab's fleet; the lab of another owner is never touched.
        disk_gib: the disk space of all hosts together, in GiB.
    """

    bridge: str
    subnet: str
    owner: str
    disk_gib: int

    @property
    def network(self) -> ipaddress.IPv4Network:
        """The subnet."""
        return ipaddress.IPv4Network(self.subnet)

    @property
    def gateway(self) -> str:
        """The bridge's own address."""
        return str(self.network[1])

    @classmethod
    def from_properties(cls, properties: Mapping[str, Any]) -> NetworkSpec:
        """The record from a Pulumi property bag (numbers come as floats, and other keys beside)."""
        return cls(
            bridge=properties["bridge"],
            subnet=properties["subnet"],
            owner=properties["owner"],
            disk_gib=int(properties["disk_gib"]),
        )

    def properties(self) -> dict[str, Any]:
        """The record as a property bag."""
        return asdict(self)


@dataclass(frozen=True)
class HostSpec:
    """One host.

    Attributes:
        bridge: the lab that it belongs to.
        name: its host name.
        address: its IPv4 address in the lab's subnet.
        subnet: that subnet.
        user: the login, with sudo and without a password.
        authorised_key: the public key of the login, ``type base64``.
        host_key: the public SSH host key, ``type base64``.
        tree: the digest of its file tree.
        peers: host name -> address of every host of the lab.
        binds: folder on this machine -> folder on the host, writable.
        disk_gib: its disk space, in GiB.
        containers: whether a container engine may run in it.
    """

    bridge: str
    name: str
    address: str
    subnet: str
    user: str
    authorised_key: str
    host_key: str
    tree: str
    peers: Mapping[str, str]
    binds: Mapping[str, str]
    disk_gib: int
    containers: bool = False

    @property
    def machine(self) -> str:
        """A name that is unique among all labs."""
        return f"{self.bridge}-{self.name}"

    @classmethod
    def from_properties(cls, properties: Mapping[str, Any]) -> HostSpec:
        """The record from a Pulumi property bag (numbers come as floats, and other keys beside)."""
        return cls(
            bridge=properties["bridge"],
            name=properties["name"],
            address=properties["address"],
            subnet=properties["subnet"],
            user=properties["user"],
            authorised_key=properties["authorised_key"],
            host_key=properties["host_key"],
            tree=properties["tree"],
            peers=dict(properties["peers"]),
            binds=dict(properties["binds"]),
            disk_gib=int(properties["disk_gib"]),
            # A host of an earlier release has no such key.
            containers=bool(properties.get("containers")),
        )

    def properties(self) -> dict[str, Any]:
        """The record as a property bag; the private host key is never in it."""
        return {**asdict(self), "peers": dict(self.peers), "binds": dict(self.binds)}


@dataclass(frozen=True)
class Placement:
    """The placement of a pool of the lab: the checked ``placement`` mapping of ``fleet.yml``.

    Its errors have the key inside that mapping; the caller adds file and line.
    """

    bridge: str
    subnet: ipaddress.IPv4Network
    first: int

    @classmethod
    def parse(cls, placement: Mapping[str, Any], default_first: int) -> Placement:
        """Checks a placement.

        Args:
            placement: ``bridge``, ``subnet`` and, optionally, ``first``: the place of ordinal 0 in the subnet.
            default_first: the value of ``first`` where it is not given.

        Raises:
            FleetError: an unknown, missing or impossible value.
        """
        try:
            checked = LabPlacement.model_validate(dict(placement))
        except ValidationError as invalid:
            # A misspelt key is also a missing one: the spelling comes first.
            detail = min(invalid.errors(), key=lambda error: error["type"] == "missing")
            key = str(detail["loc"][0]) if detail["loc"] else None
            message = "unknown key" if detail["type"] == "extra_forbidden" else str(detail["msg"])
            raise FleetError(message, "docs/lab.md shows the lab's placement", key=key) from None
        first = default_first if checked.first is None else checked.first
        return cls(checked.bridge, ipaddress.IPv4Network(checked.subnet), first)

    def address(self, ordinal: int) -> str:
        """The address of the pool's host of that ordinal.

        Raises:
            FleetError: the subnet has no such address.
        """
        place = self.first + ordinal
        if place >= self.subnet.num_addresses - 1:
            raise FleetError(
                f"{self.subnet} has no address for place {place}",
                "lower 'first' or take a larger subnet",
                key="subnet",
            )
        return str(self.subnet[place])
