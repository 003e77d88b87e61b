"""Hosts that exist already: ``fleet.yml`` has their addresses, and the stack creates nothing."""

from __future__ import annotations

import pulumi

from infra.hosts import CloudArgs, CloudComponent


class StaticCloud(CloudComponent):
    """Represents the static hosts in the stack. ``stack.json`` does not contain them."""

    def __init__(self, name: str, args: CloudArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("StaticCloud", name, opts)
        self.hosts = {}
        self.register_outputs({"addresses": {host.name: host.static.address for host in args.hosts if host.static}})
