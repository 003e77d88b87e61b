"""DigitalOcean: a network in each region, droplets in it. Which region offers a size is asked, at every preview."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
import pulumi_digitalocean as do

from infra.cloud_init import user_data
from infra.hosts import SERVICE_PORTS, CloudArgs, CloudComponent, HostRecord, has_private, needs_nat, placed, rented
from infra.keys import SshKeyPair
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.private_networks import block
from vllm_fleet.schema.cloud import DigitalOceanPlacement

_EVERYWHERE = ["0.0.0.0/0", "::/0"]


class DigitalOceanCloud(CloudComponent):
    """One provider; its token is that of ``DIGITALOCEAN_TOKEN``."""

    def __init__(self, name: str, args: CloudArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("DigitalOceanCloud", name, opts)
        self._args = args
        self._sizes: dict[tuple[str, str], pulumi.Output[str]] = {}
        self._provider = do.Provider(name, opts=pulumi.ResourceOptions(parent=self))
        self._mine = pulumi.ResourceOptions(parent=self, provider=self._provider)
        # Without a key of the account a droplet's root password goes out by mail.
        first = pulumi.Output.from_input(args.authorised_keys).apply(lambda keys: keys.splitlines()[0])
        self._key = do.SshKey(f"{args.fleet}-deploy", name=f"{args.fleet}-deploy", public_key=first, opts=self._mine)
        self._tags = {
            kind: do.Tag(f"{args.fleet}-{kind}", name=f"{args.fleet}-{kind}", opts=self._mine).name
            for kind in ("serving", "gateway")
        }
        self.hosts = {}
        self._firewalls(self.far_gateways(args, args.hosts))
        places = {rented(hosts[0]).placement.region: hosts for hosts in args.networks}
        networks = {region: self._network(region, hosts) for region, hosts in places.items()}
        self.hosts = {host.name: self._host(host, networks) for host in args.hosts}
        self.register_outputs({"hosts": {host: record.address for host, record in self.hosts.items()}})

    def _network(self, region: str, hosts: tuple[HostPlan, ...]) -> pulumi.Output[str]:
        name = f"{self._args.fleet}-{region}"
        # Networks of one account may not overlap, of whatever fleet: without a range, DigitalOcean takes a free one.
        chosen = block(hosts)
        network = do.Vpc(name, name=name, region=region, ip_range=str(chosen) if chosen else None, opts=self._mine).id
        if not needs_nat(hosts):
            return network
        nat = do.VpcNatGateway(
            name,
            name=name,
            region=region,
            type="PUBLIC",
            size=1,
            vpcs=[{"vpc_uuid": network, "default_gateway": True}],
            opts=self._mine,
        )
        # Droplets learn their route at their birth: the way out must be there before them.
        return pulumi.Output.all(network, nat.id).apply(lambda found: str(found[0]))

    def _firewalls(self, far_gateways: Mapping[str, pulumi.Input[str]]) -> None:
        """By tag, so that a host that goes changes no rule; gateways of another cloud by their addresses."""
        access = self._args.access
        ssh = {"protocol": "tcp", "port_range": "22", "source_addresses": access.ssh_from}
        gateways: dict[str, Any] = {"source_tags": [self._tags["gateway"]]}
        if far_gateways:
            gateways["source_addresses"] = list(far_gateways.values())
        inside = {"protocol": "tcp", "port_range": "22", **gateways}
        vllm = {"protocol": "tcp", "port_range": f"{SERVICE_PORTS[0]}-{SERVICE_PORTS[1]}", **gateways}
        api = [
            {"protocol": "tcp", "port_range": str(port), "source_addresses": access.api_from}
            for port in self._args.ports
            if access.api_from
        ]
        rules: dict[str, list[Any]] = {
            "serving": [ssh, vllm, *([inside] if has_private(self._args.hosts) else [])],
            "gateway": [ssh, *api],
        }
        if mirror := self._args.mirror_among(self._args.hosts):
            everyone: dict[str, Any] = {"source_tags": list(self._tags.values())}
            if mirror.far:
                everyone["source_addresses"] = list(mirror.far)
            rules[mirror.kind] += [{"protocol": "tcp", "port_range": str(port), **everyone} for port in mirror.ports]
        for kind, inbound in rules.items():
            do.Firewall(
                f"{self._args.fleet}-{kind}",
                name=f"{self._args.fleet}-{kind}",
                tags=[self._tags[kind]],
                inbound_rules=inbound,
                outbound_rules=[
                    {"protocol": protocol, "port_range": "1-65535", "destination_addresses": _EVERYWHERE}
                    for protocol in ("tcp", "udp")
                ],
                opts=self._mine,
            )

    def _host(self, host: HostPlan, networks: dict[str, pulumi.Output[str]]) -> HostRecord:
        where, placement = rented(host), placed(host, DigitalOceanPlacement)
        key = SshKeyPair(f"{host.name}-host-key", pulumi.ResourceOptions(parent=self))
        own = placement.image if placement.image not in (None, "latest") else None
        droplet = do.Droplet(
            host.name,
            name=f"{self._args.fleet}-{host.name}",
            size=self._offered(where.shape, placement.region),
            image=own or where.table.images[where.image_kind],
            region=placement.region,
            vpc_uuid=networks[placement.region],
            public_networking=placement.public_address,
            ssh_keys=[self._key.fingerprint],
            user_data=user_data(host.user, self._args.authorised_keys, key),
            tags=[self._tags[host.kind]],
            opts=pulumi.ResourceOptions.merge(
                self._mine,
                pulumi.ResourceOptions(
                    protect=host.name not in self._args.unprotected,
                    ignore_changes=["userData", "sshKeys", *([] if placement.image else ["image"])],
                    hooks=self._args.zones.hooks(host, placement.region),
                ),
            ),
        )
        private = droplet.ipv4_address_private
        address = droplet.ipv4_address if placement.public_address else private
        return HostRecord(address, droplet.id, host.user, key.public_key, placement.region, private)

    def _offered(self, size: str, region: str) -> pulumi.Output[str]:
        """The size, once the region is known to have it today."""
        if (size, region) not in self._sizes:
            found = do.get_sizes_output(
                filters=[{"key": "slug", "values": [size]}],
                opts=pulumi.InvokeOptions(parent=self, provider=self._provider),
            )
            self._sizes[size, region] = found.sizes.apply(
                lambda sizes: check_offer(size, region, sizes[0].regions if sizes else None)
            )
        return self._sizes[size, region]


def check_offer(size: str, region: str, offered: Any) -> str:
    """The size, if a region offers it.

    Args:
        size: the size.
        region: where it is wanted.
        offered: the regions that have it; None where the account does not see the size at all.

    Raises:
        pulumi.RunError: it does not, with the regions that do.
    """
    if offered is None:
        raise pulumi.RunError(f"DigitalOcean shows this account no size {size} (contract sizes need one: ask for it)")
    if region not in offered:
        told = ", ".join(sorted(offered)) or "no region at the moment"
        raise pulumi.RunError(f"DigitalOcean offers {size} not in {region} but in: {told}")
    return size
