"""One host of Google Cloud: an instance with its host key and, where the fleet wants one, its disk for models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pulumi

from infra.cloud_init import user_data
from infra.clouds.gcp.images import GcpImages
from infra.clouds.gcp.network import GcpNetwork, tag
from infra.hosts import CloudArgs, HostRecord, placed, rented
from infra.sdk import gcp
from vllm_fleet.catalogue.rental import Rented
from vllm_fleet.fleet import disk_speed
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import GcpPlacement

#: Series whose reservations are used by the provisioning model RESERVATION_BOUND, unless the fleet says otherwise: A3
#: Mega and A3 High are bound where they are reserved for a calendar (ReservationMode in Google's API).
_BOUND = ("a3-ultragpu", "a4-", "a4x-")
#: How long the creation of a flex-start host may take. Google keeps a request for two hours at most, and the provider
#: would give up after 20 minutes (resource_compute_instance.go): a host that came later would be paid, and in no state.
#: The provider has no input for Google's own limit of the wait (requestValidForDuration).
FLEX_CREATION = "150m"

#: Ignored changes of a host that exists: they would stop or replace it. The provider reads some from Google without
#: computing them, so that their absence from the program is a change: local SSDs that come with a machine type
#: (resource_compute_instance.go:1248, terraform-provider-google#19648), disks that another resource attaches (its page
#: says that this "must" be ignored), and what Google may fill in.
_KEPT = [
    *("zone", "metadata", "scratchDisks", "attachedDisks"),
    *("networkInterfaces[0].nicType", "networkPerformanceConfig", "advancedMachineFeatures", "keyRevocationActionType"),
    # Both force a new instance (resource_compute_instance.go, initialize_params), though the disk itself could change.
    *("bootDisk.initializeParams.provisionedIops", "bootDisk.initializeParams.provisionedThroughput"),
]
#: The guest finds an attached disk by this name, as /dev/disk/by-id/google-models.
_DEVICE_NAME = "models"


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
        key = args.host_key(host, pulumi.ResourceOptions(parent=self))
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
            **capacity(placement, where.shape, has_gpus=where.shape in where.table.shapes),
            # Without it Google refuses to stop the host at all; the guard of the stack asks for the host's key.
            allow_stopping_for_update=True,
            opts=pulumi.ResourceOptions.merge(
                pulumi.ResourceOptions.merge(self._mine, pulumi.ResourceOptions(custom_timeouts=timeouts(placement))),
                args.host_options(host, zone, _KEPT, image="bootDisk.initializeParams.image"),
            ),
        )
        volume = self._model_disk(f"{name}-models", instance, where, args) if placement.model_disk_gib else None
        private = instance.network_interfaces.apply(lambda interfaces: str(interfaces[0].network_ip))
        address = private
        if placement.public_address:
            address = instance.network_interfaces.apply(_public_address)
        self.record = HostRecord(
            address, instance.instance_id, host.user, key.public_key, instance.zone, private, volume
        )

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

    def _model_disk(
        self, name: str, instance: gcp.compute.Instance, where: Rented, args: CloudArgs
    ) -> pulumi.Output[str]:
        """The disk for models; its device name, once it is attached."""
        logical = f"{self._host.name}-models"
        kept = args.disk_options(self._host, ["zone"])
        speed = disk_speed.ordered(where, "models")
        disk = gcp.compute.Disk(
            logical,
            name=name,
            zone=instance.zone,
            size=where.placement.model_disk_gib,
            type=disk_speed.type_name(where, "models"),
            provisioned_iops=speed.iops,
            provisioned_throughput=speed.throughput_mib_s,
            opts=pulumi.ResourceOptions.merge(self._mine, kept),
        )
        attached = gcp.compute.AttachedDisk(
            logical,
            disk=disk.id,
            instance=instance.id,
            device_name=_DEVICE_NAME,
            opts=pulumi.ResourceOptions.merge(self._mine, args.disk_options(self._host)),
        )
        return attached.device_name.apply(lambda given: given or _DEVICE_NAME)


def _service_account(placement: GcpPlacement) -> gcp.compute.InstanceServiceAccountArgs | None:
    if placement.service_account is None:
        return None
    # Google's advice: the widest scope, and the roles of the account decide.
    scopes = placement.scopes or ["cloud-platform"]
    return gcp.compute.InstanceServiceAccountArgs(email=placement.service_account, scopes=scopes)


def _boot_disk(where: Rented, image: pulumi.Input[str], labels: dict[str, str]) -> gcp.compute.InstanceBootDiskArgs:
    speed = disk_speed.ordered(where, "root")
    return gcp.compute.InstanceBootDiskArgs(
        auto_delete=True,
        initialize_params=gcp.compute.InstanceBootDiskInitializeParamsArgs(
            image=image,
            size=where.placement.disk_gib,
            # The provider's default labels do not reach it; a change of them is made in place.
            labels=labels,
            type=disk_speed.type_name(where, "root"),
            provisioned_iops=speed.iops,
            provisioned_throughput=speed.throughput_mib_s,
        ),
    )


def _public_address(interfaces: Sequence[Any]) -> str:
    configs = interfaces[0].access_configs or []
    return str(configs[0].nat_ip) if configs else ""


def capacity(placement: GcpPlacement, shape: str, has_gpus: bool = True) -> dict[str, Any]:
    """Scheduling, reservation and status of an instance.

    Args:
        placement: the placement with its capacity.
        shape: the machine type.
        has_gpus: whether it has GPUs: then it cannot migrate, and maintenance stops it.
    """
    kind = placement.capacity.kind
    moves = not has_gpus and kind == "on-demand"
    scheduling: dict[str, Any] = {
        "on_host_maintenance": "MIGRATE" if moves else "TERMINATE",
        "automatic_restart": kind not in ("spot", "flex-start"),
    }
    arguments: dict[str, Any] = {"scheduling": scheduling}
    if kind == "spot":
        scheduling |= {"provisioning_model": "SPOT", "preemptible": True, "instance_termination_action": "STOP"}
        # A refresh reads TERMINATED for a host that Google stopped, and the update starts it again.
        arguments["desired_status"] = "RUNNING"
    if kind == "flex-start":
        scheduling |= {"provisioning_model": "FLEX_START", "instance_termination_action": "DELETE"}
        scheduling["max_run_duration"] = {"seconds": (placement.run_hours or 0) * 3600}
        arguments["reservation_affinity"] = {"type": "NO_RESERVATION"}
    if kind == "reservation":
        bound = placement.reservation_bound
        if shape.startswith(_BOUND) if bound is None else bound:
            # As in Google's own examples; the end of the reservation is the end of the host.
            scheduling |= {"provisioning_model": "RESERVATION_BOUND", "instance_termination_action": "DELETE"}
        arguments["reservation_affinity"] = {
            "type": "SPECIFIC_RESERVATION",
            "specific_reservation": {
                "key": "compute.googleapis.com/reservation-name",
                "values": [placement.capacity.id],
            },
        }
    return arguments


def timeouts(placement: GcpPlacement) -> pulumi.CustomTimeouts | None:
    """How long the creation may take; None: as the provider has it."""
    return pulumi.CustomTimeouts(create=FLEX_CREATION) if placement.capacity.kind == "flex-start" else None
