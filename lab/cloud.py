"""The cloud ``lab``: a fleet's plan as bridges and systemd hosts of this machine."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi

from infra.hosts import CloudArgs, CloudComponent, HostRecord
from lab.provider import LabHost, LabNetwork
from lab.spec import NetworkSpec, Placement
from lab.tree import tree_digest
from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet.host_plan import HostPlan

#: Kind of host -> the place of ordinal 0 in the subnet.
_FIRST = {"gateway": 2, "serving": 11}
#: The disk space of a host on this machine: a virtual environment and a model, or some packages.
_DISK_GIB = {"gateway": 1, "serving": 7}
#: The same for a host with its engine as an image: the layers, and the unpacked file system.
_DISK_OF_IMAGES_GIB = 14
#: The package cache that controller and hosts share: a stand-in for a mirror in the site's network.
_SHARED_CACHE = "/var/cache/uv"


@dataclass(frozen=True)
class Place:
    """The placement of one host."""

    host: HostPlan
    bridge: str
    subnet: str
    address: str

    @property
    def containers(self) -> bool:
        """Whether a container engine will run on it."""
        return self.host.deployment is not None and self.host.deployment.install == "docker"

    @property
    def disk_gib(self) -> int:
        """The disk space that the host needs on this machine, in GiB."""
        return _DISK_OF_IMAGES_GIB if self.containers else _DISK_GIB[self.host.kind]


def places(args: CloudArgs) -> tuple[Place, ...]:
    """The bridge and the address of every host.

    Raises:
        FleetError: an impossible placement, one address twice, or one bridge with two subnets.
    """
    places_so_far: list[Place] = []
    for host in args.hosts:
        try:
            places_so_far.append(_place(host, places_so_far))
        except FleetError as fault:
            raise args.error(host, fault.key, fault) from None
    return tuple(places_so_far)


def _place(host: HostPlan, others: list[Place]) -> Place:
    placement = Placement.parse(host.placement, _FIRST[host.kind])
    place = Place(host, placement.bridge, str(placement.subnet), placement.address(host.ordinal))
    for other in others:
        if other.bridge == place.bridge and other.subnet != place.subnet:
            raise FleetError(
                f"the bridge {place.bridge} has the subnet {other.subnet} for {other.host.name}",
                "give all pools of a bridge the same subnet",
                key="subnet",
            )
        if other.bridge == place.bridge and other.address == place.address:
            raise FleetError(
                f"{other.host.name} and {host.name} have the same address {place.address}",
                "give one of their pools another 'first'",
                key="first",
            )
    return place


class LabCloud(CloudComponent):
    """Bridges, and hosts with their SSH host keys."""

    def __init__(self, name: str, args: CloudArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("LabCloud", name, opts)
        self._mine = pulumi.ResourceOptions(parent=self)
        self._args = args
        everywhere = places(args)
        networks = {bridge: self._network(bridge, everywhere) for bridge in dict.fromkeys(p.bridge for p in everywhere)}
        self.hosts = {place.host.name: self._host(place, everywhere, networks[place.bridge]) for place in everywhere}
        self.register_hosts()

    def _network(self, bridge: str, everywhere: tuple[Place, ...]) -> LabNetwork:
        mine = [place for place in everywhere if place.bridge == bridge]
        spec = NetworkSpec(
            bridge=bridge,
            subnet=mine[0].subnet,
            owner=str(self._args.directory.resolve()),
            disk_gib=sum(place.disk_gib for place in mine),
        )
        return LabNetwork(bridge, spec.properties(), self._mine)

    def _host(self, place: Place, everywhere: tuple[Place, ...], network: LabNetwork) -> HostRecord:
        host_key = self._args.host_key(place.host, self._mine)
        host = LabHost(
            place.host.name,
            {
                "bridge": network.bridge,
                "name": place.host.name,
                "address": place.address,
                "subnet": network.subnet,
                "user": place.host.user,
                "authorised_key": self._args.authorised_keys,
                "host_key": host_key.public_key,
                "private_host_key": host_key.private_key,
                "tree": tree_digest(),
                "peers": {peer.host.name: peer.address for peer in everywhere if peer.bridge == place.bridge},
                "binds": {str(paths.cache_dir() / "uv"): _SHARED_CACHE},
                "disk_gib": place.disk_gib,
                "containers": place.containers,
            },
            self._mine,
        )
        return HostRecord(place.address, host.id, place.host.user, host_key.public_key, place.bridge)
