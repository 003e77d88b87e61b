"""DigitalOcean: a network in each region, droplets in it. Every preview asks which region offers a size."""

from __future__ import annotations

import pulumi
import pulumi_digitalocean as do

from infra.clouds.digitalocean.capacity import Sizes
from infra.clouds.digitalocean.host import DigitalOceanHost
from infra.clouds.digitalocean.network import DigitalOceanNetwork
from infra.hosts import CloudArgs, CloudComponent


class DigitalOceanCloud(CloudComponent):
    """One provider; ``DIGITALOCEAN_TOKEN`` gives its token."""

    def __init__(self, name: str, args: CloudArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("DigitalOceanCloud", name, opts)
        provider = do.Provider(name, opts=pulumi.ResourceOptions(parent=self))
        self.hosts = {}
        below = pulumi.ResourceOptions(parent=self, provider=provider)
        network = DigitalOceanNetwork(args, self.far_gateways(args, args.hosts), below)
        # Without an SSH key of the account, DigitalOcean mails the root password of a droplet.
        first = pulumi.Output.from_input(args.authorised_keys).apply(lambda keys: keys.splitlines()[0])
        key = do.SshKey(f"{args.fleet}-deploy", name=f"{args.fleet}-deploy", public_key=first, opts=below)
        sizes = Sizes(below)
        self.hosts = {host.name: DigitalOceanHost(host, args, network, sizes, key, below).record for host in args.hosts}
        self.register_hosts()
