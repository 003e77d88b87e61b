"""Which changes in place stop a host, by the table of each cloud."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_fleet.catalogue.catalogue import load
from vllm_fleet.fleet import host_changes, replacement

AWS, GCP, AZURE, OCI, DO = (
    "aws:ec2/instance:Instance",
    "gcp:compute/instance:Instance",
    "azure-native:compute:VirtualMachine",
    "oci:Core/instance:Instance",
    "digitalocean:index/droplet:Droplet",
)


def test_each_cloud_of_the_recipes_has_its_host_in_the_table_and_each_row_a_source() -> None:
    table = load().host_changes.types
    assert set(table) == {AWS, GCP, AZURE, OCI, DO}
    assert all(replacement.is_host(kind) for kind in table)
    assert all(row.source for rows in table.values() for row in rows.values())


@pytest.mark.parametrize(
    ("kind", "old", "new", "path", "effect"),
    [
        (AWS, {"instanceType": "p5.48xlarge"}, {"instanceType": "p5en.48xlarge"}, "instanceType", "stops"),
        (
            AWS,
            {},
            {"capacityReservationSpecification": {"capacityReservationTarget": {"capacityReservationId": "cr-1"}}},
            "capacityReservationSpecification",
            "stops",
        ),
        (GCP, {"machineType": "a3-highgpu-8g"}, {"machineType": "a3-ultragpu-8g"}, "machineType", "stops"),
        (GCP, {"serviceAccount": {"email": "a"}}, {}, "serviceAccount", "stops"),
        (GCP, {"desiredStatus": "RUNNING"}, {"desiredStatus": "TERMINATED"}, "desiredStatus", "stops"),
        (
            GCP,
            {"networkInterfaces": [{"subnetwork": "a", "networkIp": "10.0.0.2"}]},
            {"networkInterfaces": [{"subnetwork": "b"}]},
            "networkInterfaces.*.subnetwork",
            "stops",
        ),
        (
            AZURE,
            {"hardwareProfile": {"vmSize": "Standard_ND96isr_H100_v5"}},
            {"hardwareProfile": {"vmSize": "Standard_ND96isr_H200_v5"}},
            "hardwareProfile.vmSize",
            "restarts",
        ),
        (
            AZURE,
            {"storageProfile": {"osDisk": {"diskSizeGB": 200}}},
            {"storageProfile": {"osDisk": {"diskSizeGB": 400}}},
            "storageProfile.osDisk.diskSizeGB",
            "refused",
        ),
        (OCI, {"shape": "BM.GPU.H100.8"}, {"shape": "BM.GPU.H200.8"}, "shape", "restarts"),
        (DO, {"size": "gpu-mi300x1-192gb"}, {"size": "gpu-mi300x8-1536gb"}, "size", "stops"),
    ],
)
def test_a_change_that_stops(kind: str, old: dict[str, Any], new: dict[str, Any], path: str, effect: str) -> None:
    (found,) = host_changes.stops(kind, old, new)
    assert (found.path, found.effect) == (path, effect)
    assert host_changes.stops(kind, new, new) == ()


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        (GCP, {"desiredStatus": "TERMINATED"}, {"desiredStatus": "RUNNING"}),
        (AWS, {"tags": {"a": "b"}}, {"tags": {"a": "c"}}),
        (AWS, {"rootBlockDevice": {"volumeSize": 200}}, {"rootBlockDevice": {"volumeSize": 400}}),
        (GCP, {"labels": {}}, {"labels": {"a": "b"}}),
        (GCP, {"scheduling": {"automaticRestart": True}}, {"scheduling": {"automaticRestart": False}}),
        ("aws:ebs/volume:Volume", {"instanceType": "a"}, {"instanceType": "b"}),
    ],
)
def test_a_change_that_a_host_serves_through(kind: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    assert host_changes.stops(kind, old, new) == ()


def test_values_are_told_where_they_are_short() -> None:
    (found,) = host_changes.stops(DO, {"size": "a"}, {"size": "b"})
    assert str(found) == "size a -> b"
    (found,) = host_changes.stops(GCP, {"serviceAccount": {"email": "a"}}, {})
    assert str(found) == "serviceAccount"
