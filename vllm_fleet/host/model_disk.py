"""The disk for models as a host shows it: the variable of the role model_store, and its manifest items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm_fleet.base.errors import InvariantError
from vllm_fleet.fleet import weights_disk
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.stack import Location
from vllm_fleet.host.manifest_items import Item, package_item, unit_item

_ROLE = "model_store"
#: What joins several disks.
MDADM = "mdadm"
#: Kind -> the mount unit that the role's program makes. Disks inside a host have none where the image mounts them.
_UNITS = {"volume": "mnt-vllm\\x2dvolume.mount", "scratch": "mnt-vllm\\x2dscratch.mount"}
#: The controller of Azure's remote disks; the namespace of a data disk is its LUN and two more (azure-vm-utils,
#: udev/80-azure-disk.rules at 41133928).
_AZURE_CONTROLLER = "MSFT NVMe Accelerator v1.0"
_AZURE_FIRST_DATA = 2


def disk_variable(host: HostPlan, location: Location) -> dict[str, Any]:
    """Where the store of models belongs, as the role expects it.

    Args:
        host: a host that serves.
        location: where it is, with the disk that the stack has made.
    """
    if host.rented is None:
        return {"kind": "root"}
    disk = weights_disk.find(host.rented)
    if disk.kind == "local":
        return {"kind": "local", "count": disk.count}
    if disk.kind == "scratch":
        return {"kind": "scratch", "label": host.rented.table.scratch_label}
    if disk.kind == "volume":
        if not location.model_volume:
            raise InvariantError(f"{host.name} has no volume, and its stack was compared with the plan")
        return {"kind": "volume", **volume(host.cloud, location.model_volume)}
    return {"kind": "root"}


def volume(cloud: str, name: str) -> dict[str, Any]:
    """How a host finds a volume.

    Args:
        cloud: the cloud.
        name: what the cloud calls it, as the stack writes it: a volume's id at AWS, a device name at Google, ``lun``
            and its number at Azure.

    Returns:
        ``links``: paths that udev makes, the first that exists is it. Where the image lacks the cloud's rules for udev,
        ``serial`` of its NVMe controller, or ``model`` and ``namespace``.
    """
    if cloud == "aws":
        # Amazon's udev rules and ebsnvme-id (amazonlinux/amazon-ec2-utils): the serial is the id without its dash.
        serial = name.replace("-", "")
        return {
            "name": name,
            "links": [f"/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_{serial}"],
            "serial": serial,
        }
    if cloud == "gcp":
        # GoogleCloudPlatform/guest-configs, src/lib/udev/rules.d/65-gce-disk-naming.rules.
        return {"name": name, "links": [f"/dev/disk/by-id/google-{name}"]}
    number = int(name.removeprefix("lun"))
    return {
        "name": name,
        "links": [f"/dev/disk/azure/data/by-lun/{number}", f"/dev/disk/azure/scsi1/lun{number}"],
        "model": _AZURE_CONTROLLER,
        "namespace": number + _AZURE_FIRST_DATA,
    }


def manifest_items(host: HostPlan) -> Iterator[Item]:
    """The manifest items of a host whose models are not on the disk of the system: joined, and mounted."""
    if host.rented is None:
        return
    disk = weights_disk.find(host.rented)
    if disk.count > 1:
        yield package_item(_ROLE, MDADM)
    if disk.kind in _UNITS:
        yield unit_item(_ROLE, _UNITS[disk.kind], active=True, enabled=True)
