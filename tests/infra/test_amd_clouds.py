"""Azure, Oracle and DigitalOcean, by what the program asks of the engine."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pulumi
import pytest
from cloud_fleets import built, write
from recording import Recorder, secret

from infra.clouds.digitalocean.capacity import check_offer

SIZES = "digitalocean:index/getSizes:getSizes"
IMAGES = "oci:Core/getImages:getImages"
POOLS: dict[str, dict[str, Any]] = {
    "azure": {"host_class": "mi300x-8", "placement": {"region": "westeurope", "zones": ["1", "2"]}},
    "oci": {
        "host_class": "mi355x-8",
        "placement": {
            "region": "us-chicago-1",
            "zone": "Uocm:US-CHICAGO-1-AD-1",
            "compartment": "ocid1.compartment.oc1..demo",
            "image": "ocid1.image.oc1..rocm",
        },
    },
    "digitalocean": {"host_class": "mi325x-8", "placement": {"region": "nyc2"}},
}
MACHINES = {"azure": "VirtualMachine", "oci": "Instance", "digitalocean": "Droplet"}


@pytest.fixture
def clouds(recorder: Recorder) -> Recorder:
    recorder.functions[SIZES] = {"sizes": [{"slug": "s", "regions": ["nyc2", "tor1"]}], "id": "x"}
    recorder.functions[IMAGES] = {"images": [{"id": "ocid1.image.oc1..plain"}], "id": "x"}
    return recorder


def pool(cloud: str, **more: Any) -> dict[str, Any]:
    return {**POOLS[cloud], "placement": {**POOLS[cloud]["placement"], **more}}


def run(tmp_path: Path, cloud: str, found: dict[str, Any], **more: Any) -> Any:
    seen: list[Any] = []
    pulumi.runtime.test(lambda: built(write(tmp_path, cloud, found, **more), seen.append))()
    return seen[0]


@pytest.mark.parametrize("cloud", sorted(POOLS))
def test_each_planned_host_is_one_machine(cloud: str, tmp_path: Path, clouds: Recorder) -> None:
    inventory = run(tmp_path, cloud, pool(cloud, public_address=True))
    assert sorted(clouds.of(MACHINES[cloud])) == ["gateway-0", "main-0", "main-1"]
    for name, host in inventory["hosts"].items():
        assert host["address"]
        assert host["private_address"]
        assert host["address"] != host["private_address"]
        assert host["ssh_host_key"] == f"ssh-ed25519 {name}-host-key"


@pytest.mark.parametrize("cloud", sorted(POOLS))
def test_private_hosts_are_reached_at_their_private_address(cloud: str, tmp_path: Path, clouds: Recorder) -> None:
    inventory = run(tmp_path, cloud, POOLS[cloud])
    reached = {name: host["address"] == host["private_address"] for name, host in inventory["hosts"].items()}
    assert reached == {"main-0": True, "main-1": True, "gateway-0": False}
    assert len(clouds.of("NatGateway") | clouds.of("VpcNatGateway")) == 1


@pytest.mark.parametrize("cloud", sorted(POOLS))
def test_hosts_that_reach_out_by_no_means_pay_for_none(cloud: str, tmp_path: Path, clouds: Recorder) -> None:
    run(tmp_path, cloud, pool(cloud, outbound="none"))
    assert not clouds.of("NatGateway") | clouds.of("VpcNatGateway")


def user_data(cloud: str, machine: dict[str, Any]) -> str:
    if cloud == "digitalocean":
        return str(secret(machine["userData"]))
    if cloud == "oci":
        return base64.b64decode(secret(machine["metadata"])["user_data"]).decode()
    return base64.b64decode(secret(machine["osProfile"])["customData"]).decode()


@pytest.mark.parametrize("cloud", sorted(POOLS))
def test_a_machine_gets_its_host_key_as_a_secret(cloud: str, tmp_path: Path, clouds: Recorder) -> None:
    run(tmp_path, cloud, POOLS[cloud])
    text = user_data(cloud, clouds.of(MACHINES[cloud])["main-1"])
    assert json.loads(text.split("\n", 1)[1])["ssh_keys"]["ed25519_private"] == "PRIVATE main-1-host-key"


def open_to_the_world(cloud: str, found: Recorder) -> set[tuple[str, Any]]:
    """(who, port) of everything that the whole internet reaches."""
    if cloud == "azure":
        return {
            (name, rule["destinationPortRange"])
            for name, group in found.of("NetworkSecurityGroup").items()
            for rule in group["securityRules"]
            if rule["access"] == "Allow"
            and "0.0.0.0/0" in rule.get("sourceAddressPrefixes", ["0.0.0.0/0"])
            and "sourceApplicationSecurityGroups" not in rule
        }
    if cloud == "oci":
        return {
            (rule["networkSecurityGroupId"], rule["tcpOptions"]["destinationPortRange"]["min"])
            for rule in found.of("NetworkSecurityGroupSecurityRule").values()
            if rule["source"] == "0.0.0.0/0"
        }
    return {
        (name, rule["portRange"])
        for name, group in found.of("Firewall").items()
        for rule in group["inboundRules"]
        if "0.0.0.0/0" in rule.get("sourceAddresses", [])
    }


@pytest.mark.parametrize(
    ("cloud", "world"),
    [
        ("azure", {("demo-westeurope-gateway", "8080")}),
        ("oci", {("id-of-demo-us-chicago-1-gateway", 8080)}),
        ("digitalocean", {("demo-gateway", "8080")}),
    ],
)
def test_only_the_api_is_open_where_the_fleet_opens_it(
    cloud: str, world: set[Any], tmp_path: Path, clouds: Recorder
) -> None:
    run(tmp_path, cloud, POOLS[cloud])
    assert open_to_the_world(cloud, clouds) == world


@pytest.mark.parametrize("cloud", sorted(POOLS))
def test_nothing_is_open_that_the_fleet_does_not_open(cloud: str, tmp_path: Path, clouds: Recorder) -> None:
    run(tmp_path, cloud, POOLS[cloud], access={"ssh_from": ["203.0.113.0/24"]})
    assert not open_to_the_world(cloud, clouds)


@pytest.mark.parametrize(
    ("cloud", "capacity", "host_class", "wanted"),
    [
        ("azure", {"kind": "on-demand"}, "mi300x-8", {}),
        (
            "azure",
            {"kind": "spot"},
            "h200-8",
            {"priority": "Spot", "evictionPolicy": "Delete", "billingProfile": {"maxPrice": -1}},
        ),
        (
            "azure",
            {"kind": "reservation", "id": "/subscriptions/s/g"},
            "gb200-4",
            {"capacityReservation": {"capacityReservationGroup": {"id": "/subscriptions/s/g"}}},
        ),
        ("oci", {"kind": "on-demand"}, "mi300x-8", {}),
        ("oci", {"kind": "reservation", "id": "ocid1.r"}, "mi355x-8", {"capacityReservationId": "ocid1.r"}),
        ("digitalocean", {"kind": "spot"}, "mi350x-8", {"size": "gpu-mi350x8-2304gb-spot"}),
        ("digitalocean", {"kind": "on-demand"}, "mi350x-1", {"size": "gpu-mi350x1-288gb"}),
    ],
)
def test_capacity(
    cloud: str, capacity: dict[str, Any], host_class: str, wanted: dict[str, Any], tmp_path: Path, clouds: Recorder
) -> None:
    image = {"image": "own:gpu:arm64:1.0.0"} if host_class == "gb200-4" else {}
    run(tmp_path, cloud, {**pool(cloud, capacity=capacity, **image), "host_class": host_class})
    machine = clouds.of(MACHINES[cloud])["main-0"]
    keys = ("priority", "evictionPolicy", "billingProfile", "capacityReservation", "capacityReservationId")
    found = {key: machine[key] for key in keys if key in machine}
    assert found == {key: value for key, value in wanted.items() if key != "size"}
    assert machine.get("size") == wanted.get("size")


@pytest.mark.parametrize(
    ("offered", "says"),
    [
        (None, "shows this account no size"),
        (["tor1", "atl1"], "not in nyc2 but in: atl1, tor1"),
        ([], "no region at the moment"),
    ],
)
def test_a_size_that_a_region_does_not_offer_is_told(offered: list[str] | None, says: str) -> None:
    with pytest.raises(pulumi.RunError, match=says):
        check_offer("gpu-mi300x1-192gb", "nyc2", offered)


def test_oracle_s_gateway_has_the_newest_image_and_hosts_their_own(tmp_path: Path, clouds: Recorder) -> None:
    run(tmp_path, "oci", POOLS["oci"])
    machines = clouds.of("Instance")
    assert machines["main-0"]["sourceDetails"]["sourceId"] == "ocid1.image.oc1..rocm"
    assert machines["gateway-0"]["sourceDetails"]["sourceId"] == "ocid1.image.oc1..plain"
    assert machines["gateway-0"]["shapeConfig"] == {"ocpus": 4, "memoryInGbs": 32}
    assert "shapeConfig" not in machines["main-0"]
    assert machines["main-0"]["instanceOptions"] == {"areLegacyImdsEndpointsDisabled": True}
    assert clouds.of("Subnet")["demo-us-chicago-1"]["securityListIds"] == ["id-of-demo-us-chicago-1"]


@pytest.mark.parametrize("asked", [True, False])
def test_azure_encrypts_a_host_s_own_disks_where_the_fleet_asks_for_it(
    asked: bool, tmp_path: Path, clouds: Recorder
) -> None:
    run(tmp_path, "azure", pool("azure", encryption_at_host=asked))
    machine = clouds.of("VirtualMachine")["main-0"]
    # A subscription without the feature refuses even 'false'.
    assert machine.get("securityProfile") == ({"encryptionAtHost": True} if asked else None)


def test_azure_starts_a_named_image_by_its_id_or_its_version(tmp_path: Path, clouds: Recorder) -> None:
    id_ = "/subscriptions/0a/resourceGroups/own/providers/Microsoft.Compute/images/gpu"
    run(tmp_path, "azure", pool("azure", image=id_))
    assert clouds.of("VirtualMachine")["main-0"]["storageProfile"]["imageReference"] == {"id": id_}
    clouds.resources.clear()
    run(tmp_path, "azure", pool("azure", image="own:gpu:rocm:1.2.3"))
    assert clouds.of("VirtualMachine")["main-0"]["storageProfile"]["imageReference"] == {
        "publisher": "own",
        "offer": "gpu",
        "sku": "rocm",
        "version": "1.2.3",
    }


def test_azure_s_machines_take_keys_only(tmp_path: Path, clouds: Recorder) -> None:
    inventory = run(tmp_path, "azure", pool("azure", model_disk_gib=500))
    machine = clouds.of("VirtualMachine")["main-0"]
    assert secret(machine["osProfile"])["linuxConfiguration"]["disablePasswordAuthentication"] is True
    assert machine["zones"] == ["1"]
    assert machine["storageProfile"]["imageReference"]["sku"] == "2404-rocm"
    (models,) = machine["storageProfile"]["dataDisks"]
    assert models["diskSizeGB"] == 500
    # A disk that is no resource of the stack would cost money after its host.
    assert models["deleteOption"] == machine["storageProfile"]["osDisk"]["deleteOption"] == "Delete"
    assert inventory["hosts"]["main-0"]["model_volume"] == f"lun{models['lun']:.0f}"
