"""What holds in every cloud, on plain dicts of what the program asks for: the example fleets and their opposites."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
import pytest
from cloud_fleets import built, write
from recording import Recorded, Recorder

from infra.hosts import SERVICE_PORTS
from vllm_fleet.base import paths
from vllm_fleet.fleet import plan
from vllm_fleet.host.haproxy import TABLES_PORT

#: The mark of a secret on the wire.
SECRET = "4dabf18193072939515e22adb298388d"
#: Where a mirror of the fleet listens.
MIRROR = 8070
WORLD = {"0.0.0.0/0", "::/0", "*", "Internet"}
MACHINES = (
    "ec2/instance:Instance",
    "compute/instance:Instance",
    ":VirtualMachine",
    "Core/instance:Instance",
    ":Droplet",
)
EXAMPLES = sorted(path.parent.name for path in (paths.root() / "inventories").glob("example-*/fleet.yml"))
#: A pool of each cloud with everything that costs safety where it is forgotten: disks of its own, a fabric.
POOLS: dict[str, dict[str, Any]] = {
    "aws": {
        "host_class": "h100-8",
        "placement": {"region": "us-east-1", "zone": "us-east-1a", "model_disk_gib": 500, "fabric": True},
    },
    "gcp": {
        "host_class": "b200-8",
        "placement": {
            "region": "us-central1",
            "zone": "us-central1-b",
            "project": "demo-project",
            "capacity": {"kind": "spot"},
            "model_disk_gib": 500,
        },
    },
    "azure": {"host_class": "mi300x-8", "placement": {"region": "westeurope", "model_disk_gib": 500}},
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
#: The subnets of example-company in its account.
COMPANY = {"subnet-0123456789abcdef1": "eu-central-1a", "subnet-0123456789abcdef2": "eu-central-1b"}
VPC = "vpc-0123456789abcdef0"
FUNCTIONS: dict[str, Any] = {
    "aws:ec2/getSubnet:getSubnet": lambda asked: {
        "id": asked["id"],
        "availabilityZone": COMPANY[asked["id"]],
        "vpcId": VPC,
        "cidrBlock": "10.8.0.0/24",
    },
    "aws:ec2/getSecurityGroup:getSecurityGroup": lambda asked: {"id": asked["id"], "vpcId": VPC},
    "aws:ssm/getParameter:getParameter": {"value": "ami-1", "name": "p", "type": "String", "version": 1},
    "gcp:compute/getImage:getImage": {"selfLink": "projects/p/global/images/i-1", "name": "i-1"},
    "digitalocean:index/getSizes:getSizes": {"sizes": [{"slug": "s", "regions": ["nyc2"]}], "id": "x"},
    "oci:Core/getImages:getImages": {"images": [{"id": "ocid1.image.oc1..plain"}], "id": "x"},
}


MADE: dict[str, list[Recorded]] = {}


@pytest.fixture(params=[*EXAMPLES, *sorted(POOLS)])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> list[Recorded]:
    """Everything that the program asks for, for one fleet; it is run once for all rules."""
    name = request.param
    if name not in MADE:
        MADE[name] = _run(name, tmp_path, request.getfixturevalue("recorder"))
    return MADE[name]


def _run(name: str, tmp_path: Path, recorder: Recorder) -> list[Recorded]:
    recorder.functions.update(FUNCTIONS)
    if name in POOLS:
        found = write(tmp_path, name, POOLS[name], access={"ssh_from": ["203.0.113.0/24"], "api_from": ["0.0.0.0/0"]})
    else:
        found = plan.load(paths.root() / "inventories" / name)
    pulumi.runtime.test(lambda: built(found, lambda _: None))()
    return recorder.resources


@dataclass(frozen=True)
class Opening:
    """One way in: who lets whom in on which ports."""

    rule: str
    ports: tuple[int, int]
    sources: tuple[str, ...]


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return (0, 65535) if text == "*" else (int(low), int(high or low))


def openings(made: list[Recorded]) -> Iterator[Opening]:
    """Every rule of every cloud that lets something in."""
    for each in made:
        at, kind = each.inputs, each.type.rsplit(":", 1)[1]
        if kind == "SecurityGroupIngressRule":
            sources = [at.get(key) for key in ("cidrIpv4", "cidrIpv6", "referencedSecurityGroupId")]
            ports = (int(at.get("fromPort", 0)), int(at.get("toPort", 65535)))
            yield Opening(each.name, ports, tuple(source for source in sources if source))
        elif each.type == "gcp:compute/firewall:Firewall":
            for allow in at["allows"]:
                for ports_text in allow["ports"]:
                    sources = [*at.get("sourceRanges", []), *at.get("sourceTags", [])]
                    yield Opening(each.name, _range(ports_text), tuple(sources))
        elif kind == "NetworkSecurityGroup" and "securityRules" in at:
            for rule in at["securityRules"]:
                if rule["access"] == "Allow":
                    sources = [*rule.get("sourceAddressPrefixes", []), *filter(None, [rule.get("sourceAddressPrefix")])]
                    sources += [group["id"] for group in rule.get("sourceApplicationSecurityGroups", [])]
                    yield Opening(f"{each.name}/{rule['name']}", _range(rule["destinationPortRange"]), tuple(sources))
        elif kind == "NetworkSecurityGroupSecurityRule":
            span = at["tcpOptions"]["destinationPortRange"]
            yield Opening(each.name, (int(span["min"]), int(span["max"])), (at["source"],))
        elif each.type == "digitalocean:index/firewall:Firewall":
            for rule in at["inboundRules"]:
                sources = [*rule.get("sourceAddresses", []), *rule.get("sourceTags", [])]
                yield Opening(f"{each.name}/{rule['portRange']}", _range(rule["portRange"]), tuple(sources))
        elif kind in ("SecurityGroup", "DefaultSecurityGroup", "SecurityList"):
            assert not at.get("ingress"), each.name
            assert not at.get("ingressSecurityRules"), each.name


def table_openings(made: list[Recorded]) -> list[Opening]:
    """The ways in at the port of the gateways' tables; the fabric of AWS is open between serving hosts alone."""
    found = [each for each in openings(made) if each.ports[0] <= TABLES_PORT <= each.ports[1]]
    return [each for each in found if not each.rule.endswith("-fabric")]


def machines(made: list[Recorded]) -> list[Recorded]:
    return [each for each in made if each.type.endswith(MACHINES)]


def test_neither_ssh_nor_vllm_is_open_to_the_world(made: list[Recorded]) -> None:
    found = list(openings(made))
    # Where the account has security groups of its own, the stack opens nothing.
    own = any(each.inputs.get("vpcSecurityGroupIds", ["id-of-"])[0].startswith("sg-") for each in made)
    assert own == (not found)
    assert own or any(low <= 22 <= high for low, high in (each.ports for each in found))
    for each in found:
        assert each.sources, f"{each.rule} names nobody, which some clouds read as everybody"
        if WORLD & set(each.sources):
            assert each.ports == (8080, 8080), each
            assert "gateway" in each.rule or "api" in each.rule, each
        low, high = each.ports
        if each.ports == (8080, 8080) and ("gateway" in each.rule or "api" in each.rule):
            continue  # the API, on the gateways
        if each.ports == (MIRROR, MIRROR):
            ranges = [ipaddress.ip_network(source) for source in each.sources if source[0].isdigit()]
            assert all(network.is_private for network in ranges), f"{each.rule}: the mirror only from inside"
            continue
        inside = low <= SERVICE_PORTS[1] and SERVICE_PORTS[0] <= high
        # By their group or tag, or in joined networks by the address that a gateway has inside.
        networks = [source for source in each.sources if "/" in source and not source.startswith("gateway-")]
        assert not inside or not networks, f"{each.rule}: vLLM only from gateways"


def test_only_gateways_reach_the_tables_of_gateways(made: list[Recorded]) -> None:
    assert all(source.endswith("-gateway") for each in table_openings(made) for source in each.sources)


def test_every_disk_is_encrypted(made: list[Recorded]) -> None:
    for each in made:
        at = each.inputs
        if each.type == "aws:ec2/instance:Instance":
            assert at["rootBlockDevice"]["encrypted"] is True, each.name
            assert "ebsBlockDevices" not in at
        elif each.type == "aws:ebs/volume:Volume":
            assert at["encrypted"] is True, each.name
        # Google, Azure, Oracle and DigitalOcean encrypt every disk and have no switch for it. Azure's encryption of a
        # host's own disks is an option: a subscription without the feature refuses it.


def test_metadata_needs_a_token_and_stays_on_the_host(made: list[Recorded]) -> None:
    for each in made:
        if each.type == "aws:ec2/instance:Instance":
            options = each.inputs["metadataOptions"]
            assert (options["httpTokens"], options["httpPutResponseHopLimit"]) == ("required", 1), each.name
        if each.type == "oci:Core/instance:Instance":
            assert each.inputs["instanceOptions"]["areLegacyImdsEndpointsDisabled"] is True, each.name


def test_no_host_has_rights_in_its_cloud(made: list[Recorded]) -> None:
    for each in machines(made):
        rights = {
            key: each.inputs[key] for key in ("iamInstanceProfile", "serviceAccount", "identity") if key in each.inputs
        }
        # Only those that a fleet names, and none for gateways.
        named = (
            {"iamInstanceProfile": "inference-hosts"} if each.name in ("h100-0", "h100-1") and _is_company(made) else {}
        )
        assert rights == named, each.name


def _is_company(made: list[Recorded]) -> bool:
    return any(each.type == "pulumi:providers:aws" and "111122223333" in str(each.inputs) for each in made)


#: What cannot carry tags: parts of other resources, and names by themselves.
UNTAGGED = (
    *("RouteTableAssociation", "VolumeAttachment", "AttachedDisk", "Subnetwork", "Network", "Router", "RouterNat"),
    *("NetworkSecurityGroupSecurityRule", "SecurityGroupIngressRule", "SecurityGroupEgressRule", "Route"),
    *("Tag", "SshKey", "VpcNatGateway"),
)


def test_everything_says_whose_it_is(made: list[Recorded]) -> None:
    by_provider = {"aws": "defaultTags", "gcp": "defaultLabels"}
    for each in made:
        cloud, kind = each.type.split(":")[0], each.type.rsplit(":", 1)[1]
        if each.type.startswith("pulumi:providers:") and kind in by_provider:
            default = each.inputs[by_provider[kind]]
            assert "vllm-fleet" in str(default), each.name
            assert "fleet" in str(default), each.name
        if cloud == "azure-native" and kind != "Subnet":
            assert each.inputs["tags"]["managed-by"] == "vllm-fleet", each.name
        if cloud == "oci" and kind not in UNTAGGED:
            assert each.inputs["freeformTags"]["managed-by"] == "vllm-fleet", each.name
        if cloud == "digitalocean" and kind not in (*UNTAGGED, "Vpc"):
            assert each.inputs["tags"], each.name
        if cloud == "aws" and kind not in UNTAGGED:
            assert each.inputs["tags"]["Name"], each.name


@pytest.mark.parametrize("cloud", sorted(POOLS))
def test_own_tags_are_on_everything_that_takes_tags(cloud: str, tmp_path: Path, recorder: Recorder) -> None:
    recorder.functions.update(FUNCTIONS)
    found = write(tmp_path, cloud, POOLS[cloud], tags={"cost-centre": "4711"})
    pulumi.runtime.test(lambda: built(found, lambda _: None))()
    seen = 0
    for each in recorder.resources:
        kind, at = each.type.rsplit(":", 1)[1], each.inputs
        tags: Any = None
        if each.type in ("pulumi:providers:aws", "pulumi:providers:gcp"):
            tags = at["defaultTags" if kind == "aws" else "defaultLabels"]
        elif each.type == "gcp:compute/instance:Instance":
            # The provider's default labels do not reach it.
            tags = at["bootDisk"]["initializeParams"]["labels"]
        elif cloud == "azure" and each.type.startswith("azure-native:") and kind != "Subnet":
            tags = at["tags"]
        elif each.type.startswith("oci:") and kind not in UNTAGGED:
            tags = [at["freeformTags"], at.get("createVnicDetails", at)["freeformTags"]]
        elif kind == "Droplet":
            tags = at["tags"]
        if tags is not None:
            seen += 1
            assert str(tags).count("4711") == (2 if isinstance(tags, list) and cloud == "oci" else 1), each.name
    assert seen


def test_hosts_with_gpus_have_no_address_on_the_internet(made: list[Recorded]) -> None:
    names = {each.name for each in machines(made)}
    serving = {name for name in names if not name.startswith("gateway-")}
    assert serving
    for each in made:
        at = each.inputs
        if each.name not in serving and each.name.split("-models")[0] not in serving:
            continue
        assert not each.type.endswith((":Eip", ":Address", ":PublicIPAddress")), each.name
        assert at.get("associatePublicIpAddress") in (None, False), each.name
        assert at.get("publicNetworking") in (None, False), each.name
        assert at.get("createVnicDetails", {}).get("assignPublicIp", "false") == "false", each.name
        for interface in at.get("networkInterfaces", []):
            assert not interface.get("accessConfigs"), each.name


def test_what_is_told_to_a_host_is_a_secret(made: list[Recorded]) -> None:
    """The private host key is in no input in plain; on the state of a real engine: test_lab_engine."""
    for each in machines(made):
        assert SECRET in str(each.inputs), each.name
        plain = str(_plain(each.inputs))
        assert not [word for word in ("PRIVATE", "userData", "customData", "user_data", "user-data") if word in plain]


def _plain(value: Any) -> Any:
    """The part of an input that is in plain in the state."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if not (isinstance(each, dict) and SECRET in each)}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def test_a_block_is_bought_by_no_example(made: list[Recorded]) -> None:
    assert not [each.name for each in made if "Reservation" in each.type]
