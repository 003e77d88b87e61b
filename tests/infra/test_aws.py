"""AWS, by what the program asks of the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pulumi
import pytest
from cloud_fleets import built, write
from recording import Recorder, secret

from infra.clouds.aws.blocks import Order
from infra.state import State
from vllm_fleet.schema.cloud import Purchase

PARAMETER = "aws:ssm/getParameter:getParameter"
OFFERING = "aws:ec2/getCapacityBlockOffering:getCapacityBlockOffering"
REGION = {"region": "us-east-1", "zones": ["us-east-1a", "us-east-1c"]}
POOL: dict[str, Any] = {"host_class": "h100-8", "placement": REGION}
ORDER = {"offering_id": "cb-1", "duration_hours": 48, "accept_cost_usd": 1000.0}


@pytest.fixture
def aws(recorder: Recorder) -> Recorder:
    recorder.functions[PARAMETER] = {"value": "ami-1", "name": "p", "type": "String", "version": 1}
    return recorder


def placed(**more: Any) -> dict[str, Any]:
    return {**POOL, "placement": {**REGION, **more}}


@pulumi.runtime.test
def test_hosts_are_named_by_pool_and_ordinal_and_stand_in_the_stack(tmp_path: Path, aws: Recorder) -> Any:
    def check(inventory: Any) -> None:
        assert sorted(aws.of("Instance")) == ["gateway-0", "main-0", "main-1"]
        assert inventory["hosts"]["main-1"] == {
            "address": "main-1/privateIp",
            "private_address": "main-1/privateIp",
            "id": "id-of-main-1",
            "user": "ubuntu",
            "ssh_host_key": "ssh-ed25519 main-1-host-key",
            "zone": "main-1/availabilityZone",
            "network": "aws us-east-1",
        }
        assert inventory["networks"] == {"aws us-east-1": "10.60.0.0/16"}
        assert inventory["hosts"]["gateway-0"]["address"] == "gateway-0/publicIp"
        assert sorted(aws.of("Eip")) == ["demo-us-east-1-nat", "gateway-0"]

    return built(write(tmp_path, "aws", POOL), check)


@pulumi.runtime.test
def test_an_instance_is_closed_and_encrypted(tmp_path: Path, aws: Recorder) -> Any:
    def check(_: Any) -> None:
        host = aws.of("Instance")["main-0"]
        assert host["instanceType"] == "p5.48xlarge"
        assert host["ami"] == "ami-1"
        assert host["metadataOptions"]["httpTokens"] == "required"
        assert host["metadataOptions"]["httpPutResponseHopLimit"] == 1
        assert host["rootBlockDevice"]["encrypted"] is True
        assert "iamInstanceProfile" not in host
        assert "keyName" not in host
        text = secret(host["userData"])
        assert text.startswith("#cloud-config\n")
        assert json.loads(text.split("\n", 1)[1])["ssh_keys"]["ed25519_private"] == "PRIVATE main-0-host-key"
        assert host["tags"]["pool"] == "main"

    return built(write(tmp_path, "aws", POOL), check)


@pulumi.runtime.test
def test_the_network_lets_in_what_the_fleet_says(tmp_path: Path, aws: Recorder) -> Any:
    def check(_: Any) -> None:
        rules = aws.of("SecurityGroupIngressRule")
        inside = rules["demo-us-east-1-serving-ssh"]
        assert (inside["fromPort"], inside["referencedSecurityGroupId"]) == (22, "id-of-demo-us-east-1-gateway")
        open_to_all = {name for name, each in rules.items() if each.get("cidrIpv4") == "0.0.0.0/0"}
        assert open_to_all == {"demo-us-east-1-gateway-api-0.0.0.0-0"}
        assert {(each["fromPort"], each["cidrIpv4"]) for name, each in rules.items() if "-ssh-" in name} == {
            (22, "203.0.113.0/24")
        }
        vllm = rules["demo-us-east-1-serving-vllm"]
        assert (vllm["fromPort"], vllm["toPort"]) == (8000, 8199)
        assert vllm["referencedSecurityGroupId"] == "id-of-demo-us-east-1-gateway"
        assert {each["cidrBlock"] for each in aws.of("Subnet").values()} == {
            *("10.60.8.0/21", "10.60.40.0/21"),
            *("10.60.0.0/21", "10.60.32.0/21"),
        }

    return built(write(tmp_path, "aws", POOL), check)


@pytest.mark.parametrize(
    ("host_class", "more", "wanted"),
    [
        ("h100-8", {"kind": "on-demand"}, {}),
        (
            "h100-8",
            {"kind": "spot"},
            {
                "instanceMarketOptions": {
                    "marketType": "spot",
                    "spotOptions": {"spotInstanceType": "one-time", "instanceInterruptionBehavior": "terminate"},
                }
            },
        ),
        (
            "h200-8",
            {"kind": "reservation", "id": "cr-7"},
            {"capacityReservationSpecification": {"capacityReservationTarget": {"capacityReservationId": "cr-7"}}},
        ),
        (
            "b200-8",
            {"kind": "capacity-block", "id": "cr-9"},
            {
                "instanceMarketOptions": {"marketType": "capacity-block"},
                "capacityReservationSpecification": {"capacityReservationTarget": {"capacityReservationId": "cr-9"}},
            },
        ),
    ],
    ids=["on-demand", "spot", "reservation", "capacity-block"],
)
def test_capacity(host_class: str, more: dict[str, Any], wanted: dict[str, Any], tmp_path: Path, aws: Recorder) -> None:
    found = write(tmp_path, "aws", {"host_class": host_class, "placement": {**REGION, "capacity": more}})

    def check(_: Any) -> None:
        host = aws.of("Instance")["main-0"]
        keys = ("instanceMarketOptions", "capacityReservationSpecification", "placementGroup")
        assert {key: host[key] for key in keys if key in host} == wanted
        assert "instanceMarketOptions" not in aws.of("Instance")["gateway-0"]
        assert not aws.of("CapacityBlockReservation")

    pulumi.runtime.test(lambda: built(found, check))()


BLOCK = {"offering": "cb-1", "id": "cr-5", "zone": "us-east-1a", "starts": "2026-01-01T11:30:00Z"}
BOUGHT = {"region": "us-east-1", "zone": "us-east-1a", "capacity": {"kind": "capacity-block", "purchase": ORDER}}


@pulumi.runtime.test
def test_a_block_is_bought_only_on_an_order_and_its_hosts_wait(tmp_path: Path, aws: Recorder) -> Any:
    def check(inventory: Any) -> None:
        assert aws.of("CapacityBlockReservation") == {
            "demo-main-block": {"capacityBlockOfferingId": "cb-1", "instancePlatform": "Linux/UNIX"}
        }
        # The offer is looked up by a hook, when the block is about to be bought; test_rehearsal.py runs it.
        assert "demo-main-offer" in aws.hooks
        assert not [args for token, args in aws.calls if token == OFFERING]
        assert sorted(inventory["hosts"]) == sorted(aws.of("Instance")) == ["gateway-0"]
        assert inventory["blocks"] == {"main": {**BLOCK, "id": "id-of-demo-main-block", "ends": "2099-01-01T11:30:00Z"}}

    return built(write(tmp_path, "aws", {**POOL, "placement": BOUGHT}), check)


@pytest.mark.parametrize(
    ("starts", "ends", "hosts"),
    [
        ("2099-01-01T11:30:00Z", "2099-01-03T11:30:00Z", ["gateway-0"]),
        ("2026-01-01T11:30:00Z", "2099-01-03T11:30:00Z", ["gateway-0", "main-0", "main-1"]),
        # Their creation would be refused: see test_rehearsal.py. Those that still live stay in the stack.
        ("2026-01-01T11:30:00Z", "2026-01-03T11:30:00Z", ["gateway-0", "main-0", "main-1"]),
    ],
    ids=["before", "during", "after"],
)
def test_a_block_that_was_bought_is_bought_no_second_time(
    starts: str, ends: str, hosts: list[str], tmp_path: Path, aws: Recorder
) -> None:
    found = write(tmp_path, "aws", {**POOL, "placement": BOUGHT})
    blocks = {"main": {**BLOCK, "starts": starts, "ends": ends}, "left": {**BLOCK, "ends": ends}}

    def check(inventory: Any) -> None:
        # That of a pool that left the fleet too: it is paid for.
        assert inventory["blocks"] == blocks

    pulumi.runtime.test(lambda: built(found, check, State(stack={"blocks": blocks})))()
    assert not aws.of("CapacityBlockReservation")
    assert sorted(aws.of("Instance")) == hosts
    for name, host in aws.of("Instance").items():
        target = host.get("capacityReservationSpecification", {}).get("capacityReservationTarget")
        assert target == ({"capacityReservationId": "cr-5"} if name.startswith("main-") else None)


@pytest.mark.parametrize(
    ("offering", "fee", "zone", "says"),
    [
        ("cb-1", "1000.01", "us-east-1a", "costs 1000.01 USD"),
        ("cb-2", "1", "us-east-1a", "offers now is cb-2"),
        ("cb-1", "1", "us-east-1b", "is in us-east-1b, and the pool is in us-east-1a: nothing was bought"),
    ],
)
def test_another_offer_than_the_accepted_one_is_not_bought(offering: str, fee: str, zone: str, says: str) -> None:
    order = Order(Purchase.model_validate(ORDER), "p5.48xlarge", 2, "us-east-1a")
    with pytest.raises(pulumi.RunError, match=says):
        order.accept(offering, fee, zone)
    order.accept("cb-1", "1000", "us-east-1a")


def test_of_several_offerings_the_start_names_one() -> None:
    order = Order(Purchase.model_validate({**ORDER, "starts": "2026-12-01T11:30:00Z"}), "p5.48xlarge", 2, "us-east-1a")
    assert order.search() == {
        "capacity_duration_hours": 48,
        "instance_count": 2,
        "instance_type": "p5.48xlarge",
        "start_date_range": "2026-12-01T11:30:00Z",
        "end_date_range": "2026-12-03T11:30:00Z",
    }


@pytest.mark.parametrize(("asked", "given"), [(True, "demo-main"), ("our-group", "our-group")])
def test_a_placement_group_is_the_stack_s_or_the_one_of_that_name(
    asked: bool | str, given: str, tmp_path: Path, aws: Recorder
) -> None:
    capacity = {"kind": "reservation", "id": "cr-7"} if asked == "our-group" else {"kind": "on-demand"}
    found = write(tmp_path, "aws", placed(placement_group=asked, capacity=capacity))
    pulumi.runtime.test(lambda: built(found, lambda _: None))()
    assert aws.of("Instance")["main-0"]["placementGroup"] == given
    assert sorted(aws.of("PlacementGroup")) == (["demo-main"] if asked is True else [])


@pulumi.runtime.test
def test_a_host_out_of_the_middle_changes_no_other(tmp_path: Path, aws: Recorder) -> Any:
    def check(_: Any) -> None:
        names = [each.name for each in aws.resources]
        for number in range(5):
            mine = [name for name in names if name.startswith(f"main-{number}")]
            assert mine == [f"main-{number}", f"main-{number}-host-key", f"main-{number}"] or set(mine) == {
                f"main-{number}",
                f"main-{number}-host-key",
            }
        # Nothing that hosts share names one of them.
        shared = [each for each in aws.resources if not each.name.startswith(("main-", "gateway-", "demo-inventory"))]
        assert not [each.name for each in shared if "main-3" in str(each.inputs)]

    return built(write(tmp_path, "aws", {**POOL, "hosts": 5}), check)


def test_models_may_have_a_disk_of_their_own(tmp_path: Path, aws: Recorder) -> None:
    found = write(tmp_path, "aws", placed(model_disk_gib=500))
    seen: list[Any] = []
    pulumi.runtime.test(lambda: built(found, seen.append))()
    # The host finds it by this id.
    assert seen[0]["hosts"]["main-1"]["model_volume"] == "id-of-main-1-models"
    assert "model_volume" not in seen[0]["hosts"]["gateway-0"]
    assert sorted(aws.of("Volume")) == ["main-0-models", "main-1-models"]
    disk = aws.of("Volume")["main-0-models"]
    assert (disk["size"], disk["encrypted"], disk["availabilityZone"]) == (500, True, "main-0/availabilityZone")
    assert aws.of("VolumeAttachment")["main-0-models"]["volumeId"] == "id-of-main-0-models"


@pytest.mark.parametrize(
    ("more", "root", "models"),
    [
        # What the 3,000 IOPS of every volume carry; the provider's default is 125 MiB/s.
        ({}, (3000, 750), (3000, 750)),
        ({"disk_throughput_mib_s": 125}, (3000, 125), (3000, 750)),
        ({"model_disk_throughput_mib_s": 2000}, (3000, 750), (8000, 2000)),
        ({"model_disk_iops": 80000, "model_disk_throughput_mib_s": 1000}, (3000, 750), (80000, 1000)),
    ],
)
def test_disks_have_the_speed_that_is_ordered(
    more: dict[str, Any], root: tuple[int, int], models: tuple[int, int], tmp_path: Path, aws: Recorder
) -> None:
    found = write(tmp_path, "aws", placed(model_disk_gib=500, **more))
    pulumi.runtime.test(lambda: built(found, lambda _: None))()
    disk, volume = aws.of("Instance")["main-0"]["rootBlockDevice"], aws.of("Volume")["main-0-models"]
    assert (disk["iops"], disk["throughput"]) == root
    assert (volume["type"], volume["iops"], volume["throughput"]) == ("gp3", *models)


@pytest.mark.parametrize(
    ("pool", "cards"),
    [
        ({"host_class": "h100-8"}, list(range(32))),
        ({"host_class": "h200-8"}, list(range(16))),
        ({"host_class": "b200-8"}, list(range(8))),
        ({"host_class": "gb200-4", "capacity": {"kind": "capacity-block", "id": "cr-1"}}, [1, 3, 5, 7, 9, 11, 13, 15]),
    ],
    ids=["p5", "p5en", "p6-b200", "p6e-gb200"],
)
def test_the_fabric_has_an_interface_on_each_card_that_carries_it(
    pool: dict[str, Any], cards: list[int], tmp_path: Path, aws: Recorder
) -> None:
    more = {"fabric": True, "public_address": True, **({"capacity": pool["capacity"]} if "capacity" in pool else {})}
    found = write(tmp_path, "aws", {"host_class": pool["host_class"], "placement": {**REGION, **more}})
    pulumi.runtime.test(lambda: built(found, lambda _: None))()
    host = aws.of("Instance")["main-0"]
    # EFA cannot be attached to an instance that runs, and 'networkInterfaces' of an instance is deprecated.
    assert host["launchTemplate"] == {"id": "id-of-main-0-fabric"}
    assert not {"networkInterfaces", "subnetId", "vpcSecurityGroupIds", "associatePublicIpAddress"} & set(host)
    plain, *efa = aws.of("LaunchTemplate")["main-0-fabric"]["networkInterfaces"]
    assert (plain["networkCardIndex"], plain["deviceIndex"], plain["interfaceType"]) == (0, 0, "interface")
    assert [each["networkCardIndex"] for each in efa] == cards
    assert {each["interfaceType"] for each in efa} == {"efa-only"}
    assert [each["deviceIndex"] for each in efa] == [1 if card == 0 else 0 for card in cards]
    # Of an instance with several interfaces AWS wants to know the one that an address is for.
    assert sorted(aws.of("Eip")) == ["gateway-0", "main-0", "main-1"]
    assert "instance" not in aws.of("Eip")["main-0"]
    assert aws.of("Eip")["main-0"]["networkInterface"] == "main-0/primaryNetworkInterfaceId"


@pytest.mark.parametrize("fabric", [True, False])
def test_hosts_are_open_to_each_other_for_the_fabric_alone(fabric: bool, tmp_path: Path, aws: Recorder) -> None:
    pulumi.runtime.test(lambda: built(write(tmp_path, "aws", placed(fabric=fabric)), lambda _: None))()
    for kind in ("SecurityGroupIngressRule", "SecurityGroupEgressRule"):
        rule = aws.of(kind).get("demo-us-east-1-fabric")
        group = "id-of-demo-us-east-1-serving"
        # EFA does not pass by a rule for all addresses: both directions must name the group itself.
        wanted = {"securityGroupId": group, "referencedSecurityGroupId": group, "ipProtocol": "-1"}
        assert rule == (wanted if fabric else None)


@pytest.mark.parametrize(
    ("host_class", "placement", "parameter"),
    [
        ("gb200-4", {"capacity": {"kind": "capacity-block", "id": "cr-1"}}, "/arm64/"),
        ("h100-1", {}, "/x86_64/"),
    ],
)
def test_each_processor_has_its_image(
    host_class: str, placement: dict[str, Any], parameter: str, tmp_path: Path, aws: Recorder
) -> None:
    found = write(tmp_path, "aws", {"host_class": host_class, "placement": {**REGION, **placement}})
    pulumi.runtime.test(lambda: built(found, lambda _: None))()
    asked = [args["name"] for token, args in aws.calls if token == PARAMETER]
    assert any(parameter in name for name in asked)
    assert any("canonical" in name for name in asked), "a gateway has a plain image"


@pulumi.runtime.test
def test_an_image_of_one_s_own_is_not_looked_up(tmp_path: Path, aws: Recorder) -> Any:
    def check(_: Any) -> None:
        assert aws.of("Instance")["main-0"]["ami"] == "ami-0123456789abcdef0"

    return built(write(tmp_path, "aws", placed(image="ami-0123456789abcdef0")), check)


@pulumi.runtime.test
def test_private_hosts_are_in_a_subnet_whose_way_out_is_a_nat(tmp_path: Path, aws: Recorder) -> Any:
    def check(_: Any) -> None:
        host = aws.of("Instance")["main-0"]
        assert (host["associatePublicIpAddress"], host["subnetId"]) == (False, "id-of-demo-us-east-1-a-inner")
        assert aws.of("Instance")["gateway-0"]["subnetId"] == "id-of-demo-us-east-1-a"
        # Beside the table: routes to joined networks, which their owner adds, are no business of the stack.
        assert not [each for each in aws.of("RouteTable").values() if "routes" in each]
        assert aws.of("Route")["demo-us-east-1-inner"] == {
            "routeTableId": "id-of-demo-us-east-1-inner",
            "destinationCidrBlock": "0.0.0.0/0",
            "natGatewayId": "id-of-demo-us-east-1-nat",
        }
        assert aws.of("NatGateway")["demo-us-east-1-nat"]["subnetId"] == "id-of-demo-us-east-1-a"

    return built(write(tmp_path, "aws", POOL), check)


@pulumi.runtime.test
def test_a_public_address_is_given_where_it_is_asked_for(tmp_path: Path, aws: Recorder) -> Any:
    def check(inventory: Any) -> None:
        assert aws.of("Instance")["main-0"]["associatePublicIpAddress"] is True
        assert inventory["hosts"]["main-0"]["address"] == "main-0/publicIp"
        assert not aws.of("NatGateway")

    return built(write(tmp_path, "aws", placed(public_address=True)), check)
