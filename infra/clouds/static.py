"""Hosts that exist already: the fleet says where they are, and the stack has nothing to make."""

from __future__ import annotations

import pulumi

from infra.hosts import CloudArgs, CloudComponent


class StaticCloud(CloudComponent):
    """Stands in the stack for the static hosts; they are not in ``stack.json``, ``fleet.yml`` has them."""

    def __init__(self, name: str, args: CloudArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("StaticCloud", name, opts)
        self.hosts = {}
        self.register_outputs({"addresses": {host.name: host.static.address for host in args.hosts if host.static}})
