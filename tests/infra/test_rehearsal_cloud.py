"""The rehearsed clouds themselves: what they refuse, what they keep, and that they know all that the program makes."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulumi
import pytest
from cloud_fleets import built, write
from recording import Recorder

from lab.rehearsal import cloudinit, machines, sdk, table, wire
from lab.rehearsal.cloud import Account, Cloud, Fault, RefusedError
from lab.rehearsal.operations import BegunError, Operations
from vllm_fleet.catalogue.catalogue import load as load_catalog

VPC = "aws:ec2/vpc:Vpc"
SUBNET = "aws:ec2/subnet:Subnet"
INSTANCE = "aws:ec2/instance:Instance"
EIP = "aws:ec2/eip:Eip"

#: A pool of each cloud that makes as many kinds of things as a fleet can have there.
POOLS: dict[str, dict[str, Any]] = {
    "aws": {
        "host_class": "h100-8",
        "placement": {
            "region": "us-east-1",
            "zone": "us-east-1a",
            "fabric": True,
            "placement_group": True,
            "model_disk_gib": 100,
        },
    },
    "gcp": {
        "host_class": "h100-8",
        "placement": {"project": "my-project", "region": "us-east4", "zone": "us-east4-a", "model_disk_gib": 100},
    },
    "azure": {"host_class": "mi300x-8", "placement": {"region": "westeurope", "model_disk_gib": 100}},
    "oci": {
        "host_class": "mi300x-8",
        "placement": {
            "region": "us-chicago-1",
            "zone": "Uocm:US-CHICAGO-1-AD-1",
            "compartment": "ocid1.compartment.oc1..x",
            "image": "ocid1.image.oc1..x",
        },
    },
    "digitalocean": {"host_class": "mi300x-1", "placement": {"region": "tor1"}},
}
FUNCTIONS: dict[str, dict[str, Any]] = {
    "aws:ssm/getParameter:getParameter": {"value": "ami-1"},
    "gcp:compute/getImage:getImage": {"selfLink": "image"},
    "oci:Core/getImages:getImages": {"images": [{"id": "ocid1.image.oc1..x"}]},
    "digitalocean:index/getSizes:getSizes": {"sizes": [{"slug": "gpu-mi300x1-192gb", "regions": ["tor1"]}]},
}


@pytest.fixture
def aws(tmp_path: Path) -> Operations:
    cloud = Cloud(tmp_path / "cloud.db")
    cloud.account = Account(have={"images": ["ami-1"], "reservations": ["cr-1"]})
    return Operations("aws", cloud, None)


def subnet(aws: Operations) -> str:
    vpc = aws.create(VPC, "vpc", {"cidrBlock": "10.60.0.0/16"}).id
    inputs = {"vpcId": vpc, "cidrBlock": "10.60.0.0/20", "availabilityZone": "us-east-1a"}
    return aws.create(SUBNET, "subnet", inputs).id


def instance(aws: Operations, **more: Any) -> dict[str, Any]:
    return {"ami": "ami-1", "instanceType": "p5.48xlarge", "subnetId": subnet(aws), **more}


@pytest.mark.parametrize("cloud", sorted(POOLS))
def test_every_type_that_the_program_makes_is_rehearsed_and_has_the_right_form(
    cloud: str, tmp_path: Path, recorder: Recorder
) -> None:
    recorder.functions |= FUNCTIONS
    plugin = {"azure": "azure-native"}.get(cloud, cloud)
    rehearsed = Operations(plugin, Cloud(tmp_path / "cloud.db"), None)

    def check(_: Any) -> None:
        made = [each for each in recorder.resources if each.type.startswith(f"{plugin}:")]
        assert {each.type for each in made} <= set(rehearsed.table.kinds)
        for each in made:
            inputs = wire.plain(wire.bag(each.inputs))
            assert rehearsed.check(each.type, inputs) == [], f"{each.type} {each.name}"
            rules = rehearsed.kind(each.type).schema.properties
            old = [path for path, rule in rules.items() if rule.deprecated and wire.value(inputs, path) is not None]
            assert old == [], f"{each.type} {each.name}: the provider calls these deprecated"

    pulumi.runtime.test(lambda: built(write(tmp_path, cloud, POOLS[cloud]), check))()


def paths(kind: table.Kind) -> Iterator[str]:
    machine = kind.machine
    yield from (
        *kind.needs,
        *kind.refers,
        *kind.changes.grows,
        *kind.changes.replaced_by_less,
        *kind.changes.stops,
        *([kind.changes.stops_if] if kind.changes.stops_if else []),
        *(row.path for row in kind.read_back),
        *kind.unique,
        *(each for pair in kind.conflicts for each in pair),
    )
    if machine:
        yield from (machine.shape, machine.user_data)


@pytest.mark.parametrize("plugin", table.PLUGINS)
def test_a_table_names_only_properties_that_the_sdk_has(plugin: str) -> None:
    rows = table.load(plugin)
    for token, kind in rows.kinds.items():
        known = set(sdk.shape(kind.arguments).types)
        assert {path.split(".")[0] for path in paths(kind)} <= known, token
        for targets in kind.refers.values():
            for target, output in targets:
                assert target in rows.kinds or output in rows.account, f"{token}: {target}"


@pytest.mark.parametrize("plugin", table.PLUGINS)
def test_every_shape_of_the_recipes_is_known(plugin: str) -> None:
    rows = table.load(plugin)
    recipes = load_catalog().clouds[rows.cloud]
    assert {*recipes.shapes, recipes.gateway_shape} <= rows.shapes


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"metadataOptions": {"httpTokenz": "required"}}, "is no property of InstanceMetadataOptions"),
        ({"metadataOptions": {"httpPutResponseHopLimit": "1"}}, "must be a int"),
        ({"instanceType": "p9.huge"}, "is 'p9.huge', and may be"),
        ({"networkInterfaces": [{"deviceIndex": 0}]}, "is required and is not given"),
        ({"colour": "red"}, "is no property of Instance"),
        ({"tags": {"a": 1}}, "must be a str"),
    ],
)
def test_what_has_the_wrong_form_is_refused_before_anything_is_asked(
    aws: Operations, inputs: dict[str, Any], says: str
) -> None:
    ((path, reason),) = aws.check(INSTANCE, inputs)
    assert path.split(".")[0] in inputs
    assert says in reason


def test_what_a_preview_does_not_know_yet_has_no_wrong_form(aws: Operations) -> None:
    assert (
        aws.check(INSTANCE, {"ami": wire.UNKNOWN, "tags": {"a": wire.UNKNOWN}, "metadataOptions": wire.UNKNOWN}) == []
    )
    assert aws.preview(INSTANCE, {"ami": "ami-1"})["publicIp"] == wire.UNKNOWN


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ami": None}, "ami is required"),
        ({"ami": "ami-2"}, r"image id '\[ami-2\]' does not exist"),
        ({"instanceType": "p9.huge"}, "Invalid value 'p9.huge'"),
        ({"subnetId": "subnet-0"}, "'subnet-0' does not exist"),
        ({"vpcSecurityGroupIds": ["sg-0"]}, "'sg-0' does not exist"),
        ({"instanceMarketOptions": {"marketType": "capacity-block"}}, "needs a capacity reservation target"),
        (
            {"capacityReservationSpecification": {"capacityReservationTarget": {"capacityReservationId": "cr-2"}}},
            "'cr-2' does not exist",
        ),
    ],
)
def test_what_the_cloud_refuses_is_not_made(aws: Operations, change: dict[str, Any], says: str) -> None:
    inputs = {key: each for key, each in instance(aws, **change).items() if each is not None}
    with pytest.raises(RefusedError, match=says):
        aws.create(INSTANCE, "host", inputs)
    assert aws.cloud.records_of(":Instance") == []


def test_what_is_in_use_cannot_be_deleted(aws: Operations) -> None:
    host = aws.create(INSTANCE, "host", instance(aws))
    with pytest.raises(RefusedError, match=f"has a dependent object: {host.id}"):
        aws.delete(SUBNET, host.inputs["subnetId"])
    aws.delete(INSTANCE, host.id)
    aws.delete(SUBNET, host.inputs["subnetId"])
    aws.delete(SUBNET, host.inputs["subnetId"])


def test_an_address_needs_a_way_to_the_internet(aws: Operations) -> None:
    host = aws.create(INSTANCE, "host", instance(aws))
    with pytest.raises(RefusedError, match="not attached to any internet gateway"):
        aws.create(EIP, "host", {"instance": host.id})
    vpc = aws.cloud.records_of(":Vpc")[0].id
    aws.create("aws:ec2/internetGateway:InternetGateway", "way", {"vpcId": vpc})
    assert aws.create(EIP, "host", {"instance": host.id}).outputs["publicIp"] != host.address


def test_faults_are_counted_and_leave_what_they_say(aws: Operations) -> None:
    inputs = instance(aws)
    aws.cloud.faults = [
        Fault("create", INSTANCE, zone="us-east-1a", says="capacity", times=1),
        Fault("create", INSTANCE, says="not ready", times=1, leaves="begun"),
        Fault("create", INSTANCE, says="the answer was lost", times=1, leaves="lost"),
    ]
    with pytest.raises(RefusedError, match=r"InsufficientInstanceCapacity.*p5.48xlarge.*us-east-1a"):
        aws.create(INSTANCE, "host", inputs)
    assert aws.cloud.records_of(":Instance") == []
    with pytest.raises(BegunError) as begun:
        aws.create(INSTANCE, "host", inputs)
    assert [each.id for each in aws.cloud.records_of(":Instance")] == [begun.value.record.id]
    with pytest.raises(RefusedError, match="the answer was lost"):
        aws.create(INSTANCE, "host", inputs)
    assert len(aws.cloud.records_of(":Instance")) == 2
    aws.create(INSTANCE, "host", inputs)


def test_a_slow_creation_ends_when_the_engine_wants_it(aws: Operations) -> None:
    aws.cloud.faults = [Fault("create", INSTANCE, seconds=600)]
    threading.Timer(0.2, aws.stopped.set).start()
    with pytest.raises(BegunError, match="cancelled"):
        aws.create(INSTANCE, "host", instance(aws))


def test_a_cloud_is_kept_in_its_file_and_only_its_owner_may_read_it(tmp_path: Path, aws: Operations) -> None:
    made = aws.create(VPC, "vpc", {"cidrBlock": "10.60.0.0/16"})
    file = tmp_path / "cloud.db"
    assert file.stat().st_mode & 0o777 == 0o600
    assert Cloud(file).records == [made]


def test_names_of_google_have_their_form_and_stand_once(tmp_path: Path) -> None:
    gcp = Operations("gcp", Cloud(tmp_path / "cloud.db"), None)
    gcp.config = {"project": "p"}
    network = "gcp:compute/network:Network"
    gcp.create(network, "a", {"name": "fleet"})
    with pytest.raises(RefusedError, match="alreadyExists"):
        gcp.create(network, "b", {"name": "fleet"})
    with pytest.raises(RefusedError, match="Must be a match"):
        gcp.create(network, "c", {"name": "Fleet"})


def test_networks_of_digitalocean_may_not_overlap(tmp_path: Path) -> None:
    do = Operations("digitalocean", Cloud(tmp_path / "cloud.db"), None)
    vpc = "digitalocean:index/vpc:Vpc"
    do.create(vpc, "a", {"name": "a", "region": "nyc2", "ipRange": "10.60.0.0/20"})
    do.create(vpc, "b", {"name": "b", "region": "tor1"})
    with pytest.raises(RefusedError, match="overlaps with another VPC"):
        do.create(vpc, "c", {"name": "c", "region": "tor1", "ipRange": "10.60.0.0/16"})


CONFIG = """\
users:
- name: deploy
  shell: /bin/bash
  sudo: ALL=(ALL) NOPASSWD:ALL
  ssh_authorized_keys: [ssh-ed25519 A]
disable_root: true
ssh_pwauth: false
ssh_deletekeys: true
ssh_genkeytypes: []
ssh_keys: {ed25519_private: PRIVATE, ed25519_public: ssh-ed25519 HOST}
"""


def test_user_data_is_read_as_cloud_init_would(tmp_path: Path) -> None:
    found = cloudinit.read(f"#cloud-config\n{CONFIG}")
    assert found == cloudinit.Account("deploy", ("ssh-ed25519 A",), "ssh-ed25519 HOST", "PRIVATE")
    kind = table.load("oci").kinds["oci:Core/instance:Instance"]
    text = base64.b64encode(f"#cloud-config\n{CONFIG}".encode()).decode()
    assert machines.user_data(kind, {"metadata": {"user_data": text}}).startswith("#cloud-config")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (CONFIG, "wants #cloud-config"),
        (f"#cloud-config\n{CONFIG}runcmd: [reboot]\n", "does not know: runcmd"),
        (f"#cloud-config\n{CONFIG}".replace("pwauth: false", "pwauth: true"), "leaves a password"),
    ],
)
def test_user_data_that_cloud_init_would_not_take_so_is_an_error(text: str, says: str) -> None:
    with pytest.raises(RefusedError, match=says):
        cloudinit.read(text)
