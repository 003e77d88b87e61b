"""One host of Google Cloud: an instance with its host key and, where the fleet wants one, its disk for models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pulumi

from infra.cloud_init import user_data
from infra.clouds.gcp.images import GcpImages
from infra.clouds.gcp.network import GcpNetwork, tag
from infra.hosts import CloudArgs, HostRecord, placed, rented
from infra.keys import SshKeyPair
from infra.sdk import gcp
from vllm_fleet.catalogue.rental import Rented
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import GcpPlacement

#: Machine series that boot from Hyperdisk only (Google's page on disk types, unverified).
_HYPERDISK = ("a3-ultragpu", "a4-", "a4x-")
#: Series whose reservations are used by the provisioning model RESERVATION_BOUND.
_BOUND = ("a3-ultragpu", "a4-", "a4x-")

#: Ignored changes of a host that exists: they would stop or replace it.
_KEPT = ["zone", "metadata"]


class GcpHost(pulumi.ComponentResource):
    """An instance. It has no service account unless the fleet names one: nothing on it uses Google's API.

    Attributes:
        record: its entry in ``stack.json``.
    """

    record: HostRecord

    def __init__(
        self,
        host: HostPlan,
        args: CloudArgs,
        network: GcpNetwork,
        images: GcpImages,
        opts: pulumi.ResourceOptions,
    ) -> None:
        super().__init__("fleet:infra:GcpHost", host.name, None, opts)
        self._host = host
        self._mine = pulumi.ResourceOptions(parent=self, provider=opts.provider)
        where, placement = rented(host), placed(host, GcpPlacement)
        zone = args.zones.choose(host)
        key = SshKeyPair(f"{host.name}-host-key", pulumi.ResourceOptions(parent=self))
        protect = args.protects(host)
        # Names are unique in a project, where other fleets are too.
        name = f"{args.fleet}-{host.name}"
        labels = {"host": host.name, "pool": host.pool}
        instance = gcp.compute.Instance(
            host.name,
            name=name,
            machine_type=where.shape,
            zone=zone,
            boot_disk=_boot_disk(where, images.image(where), {**args.tags, **labels}),
            network_interfaces=[self._interface(name, placement, network, protect)],
            metadata={
                "user-data": user_data(host.user, args.authorised_keys, key),
                # The fleet alone defines who may log in, not the project and not Google accounts.
                "enable-oslogin": "FALSE",
                "block-project-ssh-keys": "TRUE",
                "serial-port-enable": "FALSE",
            },
            shielded_instance_config={
                "enable_secure_boot": placement.secure_boot,
                "enable_vtpm": True,
                "enable_integrity_monitoring": True,
            },
            tags=[tag(args.fleet, host.kind)],
            labels=labels,
            service_account=_service_account(placement),
            **capacity(placement, where.shape),
            opts=pulumi.ResourceOptions.merge(
                self._mine,
                args.host_options(host, zone, _KEPT, image="bootDisk.initializeParams.image"),
            ),
        )
        if placement.model_disk_gib:
            self._model_disk(f"{name}-models", instance, placement.model_disk_gib, protect)
        private = instance.network_interfaces.apply(lambda interfaces: str(interfaces[0].network_ip))
        address = private
        if placement.public_address:
            address = instance.network_interfaces.apply(_public_address)
        self.record = HostRecord(address, instance.instance_id, host.user, key.public_key, instance.zone, private)
        self.register_outputs({"address": address})

    def _interface(
        self, name: str, placement: GcpPlacement, network: GcpNetwork, protect: bool
    ) -> gcp.compute.InstanceNetworkInterfaceArgs:
        """The network interface. Gateways get a reserved address, which DNS names can point to.

        Other hosts get a dynamic one, which stays until they are stopped: projects have few reserved addresses.
        """
        if not placement.public_address:
            return gcp.compute.InstanceNetworkInterfaceArgs(subnetwork=network.subnet(self._host))
        config = gcp.compute.InstanceNetworkInterfaceAccessConfigArgs()
        if self._host.kind == "gateway":
            kept = gcp.compute.Address(
                self._host.name,
                name=name,
                region=placement.region,
                address_type="EXTERNAL",
                opts=pulumi.ResourceOptions.merge(self._mine, pulumi.ResourceOptions(protect=protect)),
            )
            config = gcp.compute.InstanceNetworkInterfaceAccessConfigArgs(nat_ip=kept.address)
        return gcp.compute.InstanceNetworkInterfaceArgs(subnetwork=network.subnet(self._host), access_configs=[config])

    def _model_disk(self, name: str, instance: gcp.compute.Instance, size_gib: int, protect: bool) -> None:
        logical = f"{self._host.name}-models"
        kept = pulumi.ResourceOptions(protect=protect, ignore_changes=["zone"])
        disk = gcp.compute.Disk(
            logical,
            name=name,
            zone=instance.zone,
            size=size_gib,
            type="hyperdisk-balanced" if rented(self._host).shape.startswith(_HYPERDISK) else "pd-ssd",
            opts=pulumi.ResourceOptions.merge(self._mine, kept),
        )
        gcp.compute.AttachedDisk(logical, disk=disk.id, instance=instance.id, device_name="models", opts=self._mine)


def _service_account(placement: GcpPlacement) -> gcp.compute.InstanceServiceAccountArgs | None:
    if placement.service_account is None:
        return None
    # Google's advice: the widest scope, and the roles of the account decide.
    scopes = placement.scopes or ["cloud-platform"]
    return gcp.compute.InstanceServiceAccountArgs(email=placement.service_account, scopes=scopes)


def _boot_disk(where: Rented, image: pulumi.Input[str], labels: dict[str, str]) -> gcp.compute.InstanceBootDiskArgs:
    return gcp.compute.InstanceBootDiskArgs(
        auto_delete=True,
        initialize_params=gcp.compute.InstanceBootDiskInitializeParamsArgs(
            image=image,
            size=where.placement.disk_gib,
            # The provider's default labels do not reach it; a change of them is made in place.
            labels=labels,
            type="hyperdisk-balanced" if where.shape.startswith(_HYPERDISK) else "pd-balanced",
        ),
    )


def _public_address(interfaces: Sequence[Any]) -> str:
    configs = interfaces[0].access_configs or []
    return str(configs[0].nat_ip) if configs else ""


def capacity(placement: GcpPlacement, shape: str) -> dict[str, Any]:
    """Scheduling and reservation of an instance. Instances with GPUs cannot migrate: maintenance stops them.

    Args:
        placement: the placement with its capacity.
        shape: the machine type.
    """
    kind = placement.capacity.kind
    scheduling: dict[str, Any] = {"on_host_maintenance": "TERMINATE", "automatic_restart": True}
    arguments: dict[str, Any] = {"scheduling": scheduling}
    if kind in ("spot", "flex-start"):
        scheduling |= {"automatic_restart": False, "instance_termination_action": "STOP"}
        scheduling["provisioning_model"] = kind.upper().replace("-", "_")
    if kind == "spot":
        scheduling["preemptible"] = True
    if kind == "flex-start":
        scheduling["max_run_duration"] = {"seconds": (placement.run_hours or 0) * 3600}
        arguments["reservation_affinity"] = {"type": "NO_RESERVATION"}
    if kind == "reservation":
        if shape.startswith(_BOUND):
            scheduling |= {"provisioning_model": "RESERVATION_BOUND", "automatic_restart": False}
            scheduling["instance_termination_action"] = "STOP"
        arguments["reservation_affinity"] = {
            "type": "SPECIFIC_RESERVATION",
            "specific_reservation": {
                "key": "compute.googleapis.com/reservation-name",
                "values": [placement.capacity.id],
            },
        }
    return arguments
