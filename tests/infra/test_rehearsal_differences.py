"""What a provider calls a difference, by its own schema: what is replaced, updated, left alone, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml

from lab.rehearsal import sdk, table, wire
from lab.rehearsal.cloud import Cloud, RefusedError
from lab.rehearsal.difference import Difference, differences, without
from lab.rehearsal.operations import Operations
from lab.rehearsal.schemas import known, lock

AWS_HOST = "aws:ec2/instance:Instance"
GCP_HOST = "gcp:compute/instance:Instance"
AZURE_HOST = "azure-native:compute:VirtualMachine"
VOLUME = "aws:ebs/volume:Volume"
DISK = "gcp:compute/disk:Disk"
ATTACHED = "gcp:compute/attachedDisk:AttachedDisk"


def found(cloud: str, token: str, state: dict[str, Any], news: dict[str, Any]) -> list[tuple[str, bool]]:
    schema = known.load(cloud)[token]
    return [(item.path, item.replaces) for item in differences(schema, state, state, news)]


@pytest.mark.parametrize("plugin", table.PLUGINS)
def test_every_type_that_is_rehearsed_has_its_schema(plugin: str) -> None:
    rows = table.load(plugin)
    assert set(rows.kinds) <= set(known.load(rows.cloud))
    for kind in rows.kinds.values():
        assert kind.schema.properties
        for row in kind.read_back:
            assert len(row.source) > 5, f"{kind.token} {row.path}"


@pytest.mark.parametrize(
    ("state", "news", "says"),
    [
        ({"ami": "ami-1"}, {"ami": "ami-2"}, [("ami", True)]),
        ({"instanceType": "p5.48xlarge"}, {"instanceType": "p5en.48xlarge"}, [("instanceType", False)]),
        # Terraform's default is what an absent property has.
        ({"sourceDestCheck": True}, {}, []),
        ({"sourceDestCheck": False}, {}, [("sourceDestCheck", False)]),
        # Computed: what the cloud filled in stays.
        ({"tenancy": "default"}, {}, []),
        ({"rootBlockDevice": {"volumeSize": 300, "iops": 3000}}, {"rootBlockDevice": {"volumeSize": 300}}, []),
        (
            {"networkInterfaces": [{"networkInterfaceId": "eni-1", "deviceIndex": 0}]},
            {"networkInterfaces": [{"networkInterfaceId": "eni-2", "deviceIndex": 0}]},
            [("networkInterfaces.0.networkInterfaceId", True)],
        ),
        ({"tags": {"a": "1"}}, {}, [("tags", False)]),
        ({"tags": {"a": "1"}}, {"tags": {"a": "2"}}, [("tags", False)]),
        # A set has no order.
        ({"vpcSecurityGroupIds": ["sg-1", "sg-2"]}, {"vpcSecurityGroupIds": ["sg-2", "sg-1"]}, []),
        ({"ami": "ami-1"}, {"ami": wire.UNKNOWN}, [("ami", True)]),
        ({"associatePublicIpAddress": True}, {"associatePublicIpAddress": False}, [("associatePublicIpAddress", True)]),
        # Not read back for a block: given, and not in the state.
        ({}, {"instanceMarketOptions": {"marketType": "capacity-block"}}, [("instanceMarketOptions.marketType", True)]),
        # The provider's schema is not known here: the strict rule.
        ({"colour": "red"}, {"colour": "blue"}, [("colour", True)]),
    ],
)
def test_a_host_of_aws_differs(state: dict[str, Any], news: dict[str, Any], says: list[tuple[str, bool]]) -> None:
    assert found("aws", AWS_HOST, state, news) == says


@pytest.mark.parametrize(
    ("state", "news", "says"),
    [
        ({"scratchDisks": [{"interface": "NVME", "size": 375}] * 16}, {}, [("scratchDisks", True)]),
        ({"attachedDisks": [{"source": "disks/a"}]}, {}, [("attachedDisks", False)]),
        ({"machineType": "a3-highgpu-8g"}, {"machineType": "a3-megagpu-8g"}, [("machineType", False)]),
        ({"guestAccelerators": [{"type": "nvidia-h100-80gb", "count": 8}]}, {}, []),
        (
            {"scheduling": {"provisioningModel": "SPOT", "instanceTerminationAction": "STOP"}},
            {"scheduling": {"provisioningModel": "SPOT"}},
            [("scheduling.instanceTerminationAction", False)],
        ),
        # One network by its name, and by its link.
        (
            {"networkInterfaces": [{"network": "projects/p/global/networks/n"}]},
            {"networkInterfaces": [{"network": "https://www.googleapis.com/compute/v1/projects/p/global/networks/n"}]},
            [],
        ),
    ],
)
def test_a_host_of_google_differs(state: dict[str, Any], news: dict[str, Any], says: list[tuple[str, bool]]) -> None:
    assert found("gcp", GCP_HOST, state, news) == says


def test_a_host_of_oracle_differs() -> None:
    token = "oci:Core/instance:Instance"
    assert found("oci", token, {"availabilityDomain": "AD-1"}, {"availabilityDomain": "AD-2"}) == [
        ("availabilityDomain", True)
    ]
    assert found("oci", token, {"freeformTags": {"a": "1"}}, {"freeformTags": {"a": "2"}}) == [("freeformTags", False)]


def test_azure_compares_what_was_given_and_refuses_what_is_fixed(tmp_path: Path) -> None:
    azure = Operations("azure-native", Cloud(tmp_path / "cloud.json"), None)
    given = {"vmName": "a", "resourceGroupName": "g", "osProfile": {"computerName": "a"}}
    state = {**given, "storageProfile": {"dataDisks": []}}
    assert azure.differences(AZURE_HOST, state, given, given) == []
    news = {**given, "osProfile": {"computerName": "b"}}
    assert azure.differences(AZURE_HOST, state, given, news) == [Difference("osProfile.computerName", False)]
    assert azure.differences(AZURE_HOST, state, given, {**given, "vmName": "b"}) == [Difference("vmName", True)]
    group = azure.create(
        "azure-native:resources:ResourceGroup", "g", {"resourceGroupName": "g", "location": "westeurope"}
    )
    assert group.id
    needed = {"hardwareProfile": {"vmSize": "Standard_D8s_v5"}, "networkProfile": {}, "storageProfile": {}}
    made = azure.create(AZURE_HOST, "a", {**given, **needed})
    with pytest.raises(RefusedError, match=r"PropertyChangeNotAllowed.*computerName"):
        azure.update(AZURE_HOST, made.id, {**given, **needed}, {**news, **needed})


def test_what_the_program_ignores_is_no_difference() -> None:
    there = [Difference("scratchDisks", True), Difference("networkInterfaces.0.nicType", True)]
    ignored = [wire.plain_path(path) for path in ("scratchDisks", "networkInterfaces[0].nicType")]
    assert without(there, ignored) == []
    assert without(there, [wire.plain_path('tags["a"]')]) == there


def test_disks_grow_and_do_not_shrink(tmp_path: Path) -> None:
    aws = Operations("aws", Cloud(tmp_path / "aws.json"), None)
    small, large = ({"availabilityZone": "us-east-1a", "size": size, "type": "gp3"} for size in (100, 200))
    volume = aws.create(VOLUME, "models", small)
    assert volume.outputs["iops"] == 3000
    assert aws.update(VOLUME, volume.id, small, large).outputs["size"] == 200
    with pytest.raises(RefusedError, match="size 100 is smaller than 200"):
        aws.update(VOLUME, volume.id, large, small)

    google = Operations("gcp", Cloud(tmp_path / "gcp.json"), None)
    google.config = {"project": "p"}
    small, large = ({"name": "d", "zone": "us-central1-a", "size": size} for size in (100, 200))
    disk = google.create(DISK, "d", large)
    assert google.differences(DISK, disk.outputs, large, small) == [Difference("size", True)]
    assert google.differences(DISK, disk.outputs, small, {**small, "size": 300}) == [Difference("size", False)]


def test_a_host_of_google_brings_its_disks_and_shows_those_that_are_attached(tmp_path: Path) -> None:
    google = Operations("gcp", Cloud(tmp_path / "gcp.json"), None)
    google.config = {"project": "p"}
    inputs = {
        "machineType": "a3-highgpu-8g",
        "zone": "us-central1-a",
        "name": "h",
        "scheduling": {"onHostMaintenance": "TERMINATE"},
    }
    host = google.create(GCP_HOST, "h", inputs)
    assert host.outputs["scratchDisks"] == [{"interface": "NVME", "size": 375}] * 16
    disk = google.create(DISK, "d", {"name": "d", "zone": "us-central1-a", "size": 100})
    joined = google.create(ATTACHED, "d", {"disk": disk.id, "instance": host.id, "deviceName": "models"})
    read = google.read(GCP_HOST, host.id)
    assert read
    assert [item["deviceName"] for item in read.outputs["attachedDisks"]] == ["models"]
    google.delete(ATTACHED, joined.id)
    read = google.read(GCP_HOST, host.id)
    assert read
    assert "attachedDisks" not in read.outputs
    with pytest.raises(RefusedError, match="allowStoppingForUpdate"):
        google.update(GCP_HOST, host.id, inputs, {**inputs, "machineType": "a3-megagpu-8g"})


@pytest.mark.parametrize("plugin", table.PLUGINS)
def test_the_data_is_that_of_the_sdk_which_is_installed(plugin: str) -> None:
    cloud = table.CLOUDS.get(plugin, plugin)
    data = yaml.safe_load((known.HERE / f"{cloud}.yml").read_text(encoding="utf-8"))
    assert data["sdk"] == sdk.sdk_version(plugin), f"read {cloud}.yml again: python -m lab.rehearsal.schemas --help"
    assert known.load(cloud).keys() == data["resources"].keys()
    for token, schema in known.load(cloud).items():
        arguments = sdk.arguments(f"pulumi_{plugin.replace('-', '_')}", token)
        assert [path for path in schema.properties if not has(arguments, path.split("."))] == [], token
        if not schema.by_inputs:
            # AWS's provider adds the region to each resource (internal/provider, its interceptors).
            assert set(lock.inputs(arguments)) <= set(schema.properties) | schema.unread | {"region"}, token


def has(kind: Any, path: list[str]) -> bool:
    """Whether the SDK has a property."""
    kind = sdk.bare(kind)
    if not path:
        return True
    if path[0] == "*" or get_origin(kind) is not None:
        return has(get_args(kind)[-1], path[1:] if path[0] == "*" else path)
    types = sdk.shape(kind).types
    return path[0] in types and has(types[path[0]], path[1:])
