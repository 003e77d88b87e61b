"""Oracle Cloud: a network in each region and compartment, hosts in its availability domains."""

from __future__ import annotations

import pulumi

from infra.clouds.oci.host import OciHost
from infra.clouds.oci.images import OciImages
from infra.clouds.oci.network import OciNetwork
from infra.hosts import CloudArgs, CloudComponent, placed
from infra.sdk import oci
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import OciPlacement


class OciCloud(CloudComponent):
    """One provider and one network per region and compartment; the OCI SDK finds the credentials."""

    def __init__(self, name: str, args: CloudArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("OciCloud", name, opts)
        self.hosts = {}
        for hosts in args.networks:
            self._region(args, hosts)
        self.register_hosts()

    def _region(self, args: CloudArgs, hosts: tuple[HostPlan, ...]) -> None:
        name, where = args.network_name(hosts[0]), placed(hosts[0], OciPlacement)
        provider = oci.Provider(name, region=where.region, opts=pulumi.ResourceOptions(parent=self))
        below = pulumi.ResourceOptions(parent=self, provider=provider)
        if args.account.oci:
            _check_tenancy(args, args.account.oci, below)
        network = OciNetwork(name, args, hosts, self.far_gateways(args, hosts), below)
        images = OciImages(where.compartment, below)
        made = {host.name: OciHost(host, args, network, images, below) for host in hosts}
        self.hosts = {**self.hosts, **{host: instance.record for host, instance in made.items()}}


def _check_tenancy(args: CloudArgs, tenancy: str, opts: pulumi.ResourceOptions) -> None:
    """Ends the program with credentials of another tenancy: the provider has no option for it.

    Raises:
        FleetError: the credentials do not see the tenancy.
    """
    try:
        oci.identity.get_tenancy(
            tenancy_id=tenancy, opts=pulumi.InvokeOptions(parent=opts.parent, provider=opts.provider)
        )
    except Exception as fault:  # the SDK raises no narrower one
        raise args.document.error(
            ("account", "oci"),
            f"these credentials do not see the tenancy: {fault}",
            "take those of the tenancy, with the right to inspect it; nothing was made",
        ) from None
