"""The lab as Pulumi resources: property bags in and out, all the work in the modules beside.

The engine runs these providers in a process of their own. The state names their classes; the classes import
what does the work only when there is work, so that an unchanged stack starts fast.
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
    # What is not there is what a release that knew no such key has written: as good as false or empty.
    return [key for key in keys if (olds.get(key) or None) != (news.get(key) or None)]


class NetworkProvider(dynamic.ResourceProvider):
    """Bridge and NAT."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> dynamic.CreateResult:
        """Makes the network."""
        return dynamic.CreateResult(props["bridge"], self._ensure(props, None))

    def read(self, id_: str, props: dict[str, Any]) -> dynamic.ReadResult:
        """Looks at the machine: a network that is gone is gone from the state, a damaged one is updated."""
        from lab import network
        from lab.spec import NetworkSpec

        spec = NetworkSpec.from_properties(props)
        damage = network.damage(spec)
        return _GONE if damage == "gone" else dynamic.ReadResult(id_, {**spec.properties(), "damage": damage or ""})

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.DiffResult:
        """Another bridge or subnet is another network; damage is repaired in place."""
        replaces = _changed(_NETWORK_REPLACES, _olds, _news)
        changes = bool(replaces or _olds.get("damage") or _changed(("owner",), _olds, _news))
        return dynamic.DiffResult(changes=changes, replaces=replaces, delete_before_replace=True)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.UpdateResult:
        """Brings it into order."""
        return dynamic.UpdateResult(self._ensure(_news, _olds["owner"]))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Removes it, and whatever is left of the lab."""
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
        """Makes the host."""
        from lab import host
        from lab.spec import HostSpec

        spec = HostSpec.from_properties(props)
        return dynamic.CreateResult(host.create(spec, props["private_host_key"]), spec.properties())

    def read(self, id_: str, props: dict[str, Any]) -> dynamic.ReadResult:
        """Looks at the machine: a host that does not run or does not answer is gone."""
        from lab import host
        from lab.spec import HostSpec

        spec = HostSpec.from_properties(props)
        return dynamic.ReadResult(id_, spec.properties()) if host.alive(spec, id_) else _GONE

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.DiffResult:
        """Who may log in and the peers' names change in place, everything else makes another host."""
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
