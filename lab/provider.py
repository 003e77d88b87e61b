"""The lab as Pulumi resources: property bags in and out; other modules do the work.

The engine runs these providers in a process of their own, and the state contains the names of their classes. The
classes import other modules only when there is work, so that an unchanged stack starts fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
from pulumi import dynamic

_NETWORK_REPLACES = ("bridge", "subnet")
_HOST_REPLACES = ("bridge", "name", "address", "subnet", "user", "host_key", "tree", "binds", "containers")
_HOST_UPDATES = ("authorised_key", "peers")
_GONE = dynamic.ReadResult("", {})


def _changed(keys: tuple[str, ...], olds: Mapping[str, Any], news: Mapping[str, Any]) -> list[str]:
    # An earlier release may have written no such key: that equals false or empty.
    return [key for key in keys if (olds.get(key) or None) != (news.get(key) or None)]


class NetworkProvider(dynamic.ResourceProvider):
    """Bridge and NAT."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> dynamic.CreateResult:
        """Creates the network."""
        return dynamic.CreateResult(props["bridge"], self._ensure(props, None))

    def read(self, id_: str, props: dict[str, Any]) -> dynamic.ReadResult:
        """Reads the state of the machine: a missing network leaves the stack, a damaged one is updated."""
        from lab import network
        from lab.spec import NetworkSpec

        spec = NetworkSpec.from_properties(props)
        damage = network.damage(spec)
        return _GONE if damage == "gone" else dynamic.ReadResult(id_, {**spec.properties(), "damage": damage or ""})

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.DiffResult:
        """Replaces the network for another bridge or subnet; repairs damage in place."""
        replaces = _changed(_NETWORK_REPLACES, _olds, _news)
        changes = bool(replaces or _olds.get("damage") or _changed(("owner",), _olds, _news))
        return dynamic.DiffResult(changes=changes, replaces=replaces, delete_before_replace=True)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.UpdateResult:
        """Repairs the network."""
        return dynamic.UpdateResult(self._ensure(_news, _olds["owner"]))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Removes the network, and the rest of the lab."""
        from lab import cleanup

        cleanup.down(_props["bridge"])

    @staticmethod
    def _ensure(props: Mapping[str, Any], earlier_owner: str | None) -> dict[str, Any]:
        from lab import network
        from lab.spec import NetworkSpec

        spec = NetworkSpec.from_properties(props)
        network.create(spec, earlier_owner)
        return {**spec.properties(), "damage": ""}


class HostProvider(dynamic.ResourceProvider):
    """A systemd host."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> dynamic.CreateResult:
        """Creates the host."""
        from lab import host
        from lab.spec import HostSpec

        spec = HostSpec.from_properties(props)
        return dynamic.CreateResult(host.create(spec, props["private_host_key"]), spec.properties())

    def read(self, id_: str, props: dict[str, Any]) -> dynamic.ReadResult:
        """Reads the state of the machine: a host that does not run or does not answer leaves the stack."""
        from lab import host
        from lab.spec import HostSpec

        spec = HostSpec.from_properties(props)
        return dynamic.ReadResult(id_, spec.properties()) if host.alive(spec, id_) else _GONE

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.DiffResult:
        """Updates the authorised key and the peers in place; replaces the host for other changes."""
        replaces = _changed(_HOST_REPLACES, _olds, _news)
        changes = bool(replaces or _changed(_HOST_UPDATES, _olds, _news))
        return dynamic.DiffResult(changes=changes, replaces=replaces, delete_before_replace=True)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.UpdateResult:
        """Writes the authorised key and the peers' names."""
        from lab import host
        from lab.spec import HostSpec

        spec = HostSpec.from_properties(_news)
        host.update(spec)
        return dynamic.UpdateResult(spec.properties())

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Ends the host and removes its files."""
        from lab import host

        host.delete(_props["bridge"], _props["name"])


class LabNetwork(dynamic.Resource, module="lab", name="Network"):
    """A bridge with NAT. Inputs: :class:`lab.spec.NetworkSpec`."""

    bridge: pulumi.Output[str]
    subnet: pulumi.Output[str]

    def __init__(self, name: str, props: Mapping[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(NetworkProvider(), name, {"damage": None, **props}, opts)


class LabHost(dynamic.Resource, module="lab", name="Host"):
    """A systemd host. Inputs: :class:`lab.spec.HostSpec` and ``private_host_key``, a secret."""

    address: pulumi.Output[str]
    user: pulumi.Output[str]
    host_key: pulumi.Output[str]

    def __init__(self, name: str, props: Mapping[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(HostProvider(), name, dict(props), opts)
