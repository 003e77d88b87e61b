"""Google Cloud, by what the program asks of the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pulumi
import pytest
from cloud_fleets import built, write
from recording import Recorder, secret

from infra.clouds.gcp.host import capacity, timeouts
from vllm_fleet.schema.cloud import GcpPlacement

IMAGE = "gcp:compute/getImage:getImage"
REGION = {"region": "us-central1", "zones": ["us-central1-b", "us-central1-c"], "project": "demo-project"}
POOL: dict[str, Any] = {"host_class": "h100-8", "placement": {**REGION, "capacity": {"kind": "spot"}}}
TERMINATE = {"on_host_maintenance": "TERMINATE"}
STOP = {"automatic_restart": False, "instance_termination_action": "STOP"}
# The provider's page on the instance: FLEX_START needs DELETE and no restart.
FLEX = {"automatic_restart": False, "instance_termination_action": "DELETE", "provisioning_model": "FLEX_START"}
# Google's page on instances in a reservation: DELETE, with restart.
BOUND = {
    "automatic_restart": True,
    "instance_termination_action": "DELETE",
    "provisioning_model": "RESERVATION_BOUND",
}


def specific(name: str) -> dict[str, Any]:
    return {
        "type": "SPECIFIC_RESERVATION",
        "specific_reservation": {"key": "compute.googleapis.com/reservation-name", "values": [name]},
    }


@pytest.fixture
def gcp(recorder: Recorder) -> Recorder:
    recorder.functions[IMAGE] = {"selfLink": "projects/p/global/images/i-1", "name": "i-1"}
    return recorder


def placed(**more: Any) -> dict[str, Any]:
    return {**POOL, "placement": {**POOL["placement"], **more}}


@pulumi.runtime.test
def test_hosts_stand_in_the_stack(tmp_path: Path, gcp: Recorder) -> Any:
    def check(inventory: Any) -> None:
        assert sorted(gcp.of("Instance")) == ["gateway-0", "main-0", "main-1"]
        assert inventory["hosts"]["main-1"] == {
            "address": "main-1/private",
            "private_address": "main-1/private",
            "id": "number-of-main-1",
            "user": "deploy",
            "ssh_host_key": "ssh-ed25519 main-1-host-key",
            "zone": "us-central1-b",
            "network": "gcp demo-project us-central1",
        }
        assert inventory["hosts"]["gateway-0"]["address"] == "gateway-0/address"
        assert sorted(gcp.of("Address")) == ["gateway-0"]

    return built(write(tmp_path, "gcp", POOL), check)


@pulumi.runtime.test
def test_an_instance_is_shielded_and_has_no_rights(tmp_path: Path, gcp: Recorder) -> Any:
    def check(_: Any) -> None:
        host = gcp.of("Instance")["main-0"]
        assert host["machineType"] == "a3-highgpu-8g"
        assert host["name"] == "demo-main-0"
        assert "serviceAccount" not in host
        assert host["shieldedInstanceConfig"] == {
            "enableSecureBoot": False,
            "enableVtpm": True,
            "enableIntegrityMonitoring": True,
        }
        metadata = secret(host["metadata"])
        assert metadata["block-project-ssh-keys"] == "TRUE"
        assert metadata["serial-port-enable"] == "FALSE"
        config = json.loads(metadata["user-data"].split("\n", 1)[1])
        assert config["ssh_keys"]["ed25519_private"] == "PRIVATE main-0-host-key"
        assert host["scheduling"]["onHostMaintenance"] == "TERMINATE"
        assert host["bootDisk"]["initializeParams"]["image"] == "projects/p/global/images/i-1"

    return built(write(tmp_path, "gcp", POOL), check)


@pulumi.runtime.test
def test_the_network_lets_in_what_the_fleet_says(tmp_path: Path, gcp: Recorder) -> Any:
    def check(_: Any) -> None:
        rules = gcp.of("Firewall")
        assert {name for name, each in rules.items() if "0.0.0.0/0" in each.get("sourceRanges", [])} == {
            "demo-us-central1-api"
        }
        assert rules["demo-us-central1-api"]["targetTags"] == ["demo-gateway"]
        assert rules["demo-us-central1-ssh"]["sourceRanges"] == ["203.0.113.0/24"]
        inside = rules["demo-us-central1-ssh-inside"]
        assert (inside["allows"], inside["sourceTags"]) == ([{"protocol": "tcp", "ports": ["22"]}], ["demo-gateway"])
        vllm = rules["demo-us-central1-vllm"]
        assert vllm["allows"] == [{"protocol": "tcp", "ports": ["8000-8199"]}]
        assert (vllm["sourceTags"], vllm["targetTags"]) == (["demo-gateway"], ["demo-serving"])

    return built(write(tmp_path, "gcp", POOL), check)


@pytest.mark.parametrize(
    ("more", "shape", "scheduling", "affinity"),
    [
        ({}, "a3-highgpu-8g", {**TERMINATE, "automatic_restart": True}, None),
        (
            {"capacity": {"kind": "spot"}},
            "a4-highgpu-8g",
            {**TERMINATE, **STOP, "provisioning_model": "SPOT", "preemptible": True},
            None,
        ),
        (
            {"capacity": {"kind": "flex-start"}, "run_hours": 48},
            "a4-highgpu-8g",
            {**TERMINATE, **FLEX, "max_run_duration": {"seconds": 172800}},
            {"type": "NO_RESERVATION"},
        ),
        (
            {"capacity": {"kind": "reservation", "id": "mine"}},
            "a4-highgpu-8g",
            {**TERMINATE, **BOUND},
            specific("mine"),
        ),
        (
            {"capacity": {"kind": "reservation", "id": "mine"}, "reservation_bound": True},
            "a3-megagpu-8g",
            {**TERMINATE, **BOUND},
            specific("mine"),
        ),
        (
            {"capacity": {"kind": "reservation", "id": "mine"}},
            "a3-megagpu-8g",
            {**TERMINATE, "automatic_restart": True},
            specific("mine"),
        ),
        (
            {"capacity": {"kind": "reservation", "id": "mine"}},
            "a2-ultragpu-8g",
            {**TERMINATE, "automatic_restart": True},
            specific("mine"),
        ),
    ],
    ids=["on-demand", "spot", "flex-start", "bound", "bound-calendar", "a3-mega", "reservation"],
)
def test_capacity(more: dict[str, Any], shape: str, scheduling: dict[str, Any], affinity: Any) -> None:
    found = capacity(GcpPlacement.model_validate({**REGION, **more}), shape)
    assert found["scheduling"] == scheduling
    assert found.get("reservation_affinity") == affinity
    # A spot host that Google stopped is started again by the update that a refresh leads to.
    assert found.get("desired_status") == ("RUNNING" if scheduling.get("preemptible") else None)


def test_a_gateway_moves_at_maintenance_and_a_host_with_gpus_cannot() -> None:
    placement = GcpPlacement.model_validate(REGION)
    assert capacity(placement, "c3-standard-8", has_gpus=False)["scheduling"] == {
        "on_host_maintenance": "MIGRATE",
        "automatic_restart": True,
    }
    spot = GcpPlacement.model_validate({**REGION, "capacity": {"kind": "spot"}})
    assert capacity(spot, "c3-standard-8", has_gpus=False)["scheduling"]["on_host_maintenance"] == "TERMINATE"


def test_a_flex_start_host_is_waited_for_longer_than_google_keeps_its_request() -> None:
    flex = GcpPlacement.model_validate({**REGION, "capacity": {"kind": "flex-start"}, "run_hours": 48})
    waits = timeouts(flex)
    assert waits is not None
    assert waits.create == "150m"
    assert timeouts(GcpPlacement.model_validate(REGION)) is None


@pytest.mark.parametrize(
    ("host_class", "kind", "family"),
    [("gb200-4", {"kind": "reservation", "id": "r"}, "arm64-with-nvidia"), ("b200-8", {"kind": "spot"}, "amd64-with")],
)
def test_each_processor_has_its_image(
    host_class: str, kind: dict[str, Any], family: str, tmp_path: Path, gcp: Recorder
) -> None:
    pool = {"host_class": host_class, "placement": {**REGION, "capacity": kind}}
    pulumi.runtime.test(lambda: built(write(tmp_path, "gcp", pool), lambda _: None))()
    asked = {args["family"] for token, args in gcp.calls if token == IMAGE}
    assert any(family in each for each in asked)
    assert "ubuntu-2404-lts-amd64" in asked
    assert gcp.of("Instance")["main-0"]["bootDisk"]["initializeParams"]["type"] == "hyperdisk-balanced"


def test_models_may_have_a_disk_of_their_own(tmp_path: Path, gcp: Recorder) -> None:
    found = write(tmp_path, "gcp", placed(model_disk_gib=500))
    seen: list[Any] = []
    pulumi.runtime.test(lambda: built(found, seen.append))()
    assert (
        seen[0]["hosts"]["main-0"]["model_volume"] == gcp.of("AttachedDisk")["main-0-models"]["deviceName"] == "models"
    )
    assert gcp.of("Disk")["main-0-models"]["size"] == 500
    assert gcp.of("AttachedDisk")["main-0-models"]["disk"] == "id-of-main-0-models"


@pytest.mark.parametrize(
    ("host_class", "kind", "speed"),
    [("b200-8", "hyperdisk-balanced", (3000, 750)), ("h100-8", "pd-ssd", (None, None))],
)
def test_a_disk_has_the_speed_of_its_type(
    host_class: str, kind: str, speed: tuple[int | None, int | None], tmp_path: Path, gcp: Recorder
) -> None:
    pool = {"host_class": host_class, **placed(model_disk_gib=500, capacity={"kind": "spot"})}
    pulumi.runtime.test(lambda: built(write(tmp_path, "gcp", {**pool, "host_class": host_class}), lambda _: None))()
    disk = gcp.of("Disk")["main-0-models"]
    assert (disk["type"], disk.get("provisionedIops"), disk.get("provisionedThroughput")) == (kind, *speed)
    boot = gcp.of("Instance")["main-0"]["bootDisk"]["initializeParams"]
    assert (boot.get("provisionedIops"), boot.get("provisionedThroughput")) == speed


@pulumi.runtime.test
def test_private_hosts_reach_out_by_a_nat(tmp_path: Path, gcp: Recorder) -> Any:
    def check(_: Any) -> None:
        assert "accessConfigs" not in gcp.of("Instance")["main-0"]["networkInterfaces"][0]
        assert gcp.of("RouterNat")["demo-us-central1"]["natIpAllocateOption"] == "AUTO_ONLY"

    return built(write(tmp_path, "gcp", POOL), check)


@pulumi.runtime.test
def test_a_public_address_is_given_where_it_is_asked_for(tmp_path: Path, gcp: Recorder) -> Any:
    def check(inventory: Any) -> None:
        assert inventory["hosts"]["main-0"]["address"] == "198.51.100.9"
        assert not gcp.of("RouterNat")

    return built(write(tmp_path, "gcp", placed(public_address=True)), check)


@pulumi.runtime.test
def test_two_projects_have_a_network_each(tmp_path: Path, gcp: Recorder) -> Any:
    def check(_: Any) -> None:
        assert sorted(gcp.of("Network")) == ["demo-demo-project-us-central1", "demo-other-project-us-central1"]

    gateway = {"hosts": 1, "plain": True, "placement": {"project": "other-project", "network": "10.61.0.0/16"}}
    access = {"ssh_from": ["203.0.113.0/24"], "joined_networks": True}
    return built(write(tmp_path, "gcp", placed(), gateway=gateway, access=access), check)
