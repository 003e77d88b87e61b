"""Fleets in networks that an account has, made and unmade by the real engine: nothing of the account changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rehearsing import QUIET, Rehearsal, rehearse

from lab.rehearsal import script
from lab.rehearsal.__main__ import difference
from lab.rehearsal.cloud import Record
from lab.rehearsal.existing import furnish
from lab.rehearsal.stage import account_of
from vllm_fleet.fleet import plan

# The engine is built from a package registry.
pytestmark = pytest.mark.network

SUBSCRIPTION = "11111111-2222-3333-4444-555555555555"
AZURE = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/net/providers/Microsoft"
TENANCY = "ocid1.tenancy.oc1..company"
#: Cloud -> a pool in a network of the account, whose rules the stack makes.
POOLS: dict[str, dict[str, Any]] = {
    "aws": {
        "host_class": "h100-8",
        "placement": {
            "region": "us-east-1",
            "zones": ["us-east-1a", "us-east-1b"],
            "existing": {
                "vpc": "vpc-00000001",
                "subnets": {"us-east-1a": "subnet-0000000a", "us-east-1b": "subnet-0000000b"},
            },
            "instance_profile": "inference",
            "model_disk_gib": 200,
        },
    },
    "gcp": {
        "host_class": "h100-8",
        "placement": {
            "region": "us-central1",
            "zone": "us-central1-a",
            "project": "company-ml",
            "capacity": {"kind": "spot"},
            "existing": {"network": "company", "subnetwork": "company-hosts", "project": "company-network"},
            "service_account": "inference@company-ml.iam.gserviceaccount.com",
            "model_disk_gib": 200,
        },
    },
    "azure": {
        "host_class": "mi300x-8",
        "placement": {
            "region": "westeurope",
            "existing": {"subnet": f"{AZURE}.Network/virtualNetworks/company/subnets/hosts"},
            "managed_identity": f"{AZURE}.ManagedIdentity/userAssignedIdentities/inference",
        },
    },
    "oci": {
        "host_class": "mi355x-8",
        "placement": {
            "region": "us-chicago-1",
            "zone": "Uocm:US-CHICAGO-1-AD-1",
            "compartment": "ocid1.compartment.oc1..company",
            "image": "ocid1.image.oc1..rocm",
            "existing": {"vcn": "ocid1.vcn.oc1..company", "subnet": "ocid1.subnet.oc1..hosts"},
        },
    },
    "digitalocean": {
        "host_class": "mi325x-8",
        "placement": {"region": "nyc2", "existing": {"vpc_uuid": SUBSCRIPTION}},
    },
}
ACCOUNTS: dict[str, Any] = {
    "aws": "111122223333",
    "gcp": ["company-ml"],
    "azure": SUBSCRIPTION,
    "oci": TENANCY,
}
#: Cloud -> the key with rules of the account, for which the stack makes none.
OWN_RULES: dict[str, dict[str, Any]] = {
    "aws": {"security_groups": ["sg-00000001"]},
    "gcp": {"firewall": "none"},
    "azure": {"network_security_group": f"{AZURE}.Network/networkSecurityGroups/company"},
    "oci": {"network_security_groups": ["ocid1.networksecuritygroup.oc1..company"]},
}
#: Parts of networks, which no stack may make in one of the account.
OF_NETWORKS = (
    *("Vpc", "Subnet", "InternetGateway", "RouteTable", "Route", "RouteTableAssociation", "NatGateway", "Network"),
    *("Subnetwork", "Router", "RouterNat", "VirtualNetwork", "Vcn", "SecurityList", "VpcNatGateway"),
)
#: Firewall rules of each cloud.
RULES = (
    *("SecurityGroup", "SecurityGroupIngressRule", "SecurityGroupEgressRule", "Firewall"),
    *("NetworkSecurityGroup", "NetworkSecurityGroupSecurityRule", "ApplicationSecurityGroup"),
)


def fleet(cloud: str, **existing: Any) -> dict[str, Any]:
    """A fleet with a pool and two gateways, which share their tables, in a network of the account."""
    pool = POOLS[cloud]
    placement = {**pool["placement"], "existing": {**pool["placement"]["existing"], **existing}}
    return {
        "fleet": "demo",
        "defaults": {"model": "openai/gpt-oss-20b"},
        "account": {cloud: ACCOUNTS[cloud]} if cloud in ACCOUNTS else {},
        "tags": {"cost-centre": "4711"},
        "pools": {"main": {**pool, "cloud": cloud, "placement": placement, "hosts": 1}},
        "gateway": {"hosts": 2, "plain": True, "affinity": "session"},
        "access": {"ssh_from": ["203.0.113.0/24"], "api_from": ["198.51.100.0/24"], "ssh_through": "direct"},
        "protect": False,
    }


def furnished(found: Rehearsal) -> list[Record]:
    """The account that the fleet names, in the cloud of a rehearsal."""
    found.cloud.account = account_of(found.stage.folder)
    return furnish(found.cloud, plan.load(found.stage.folder).hosts)


def kinds(found: Rehearsal, before: list[Record]) -> set[str]:
    old = {record.id for record in before}
    return {record.type.rpartition(":")[2] for record in found.cloud.records if record.id not in old}


def live(found: Rehearsal, before: list[Record]) -> set[str]:
    """Brings the fleet up, changes nothing in a second run, and takes it down; the kinds of what was made."""
    found.up()
    made = kinds(found, before)
    assert not made & set(OF_NETWORKS), made
    said = found.stage.pulumi("preview", "--refresh", "--expect-no-changes", "--suppress-outputs")
    assert "create" not in said
    assert {name.rpartition("-")[0] for name in found.stack()} == {"main", "gateway"}
    found.stage.pulumi("destroy", *QUIET[:2])
    assert difference(before, found.cloud.records) == ""
    return made


@pytest.mark.parametrize("cloud", POOLS)
def test_hosts_come_into_the_account_s_network_and_nothing_of_it_changes(cloud: str, tmp_path: Path) -> None:
    with rehearse(tmp_path, fleet(cloud)) as found:
        made = live(found, furnished(found))
        assert made & set(RULES)


@pytest.mark.parametrize("cloud", OWN_RULES)
def test_with_rules_of_the_account_the_stack_makes_none(cloud: str, tmp_path: Path) -> None:
    with rehearse(tmp_path, fleet(cloud, **OWN_RULES[cloud])) as found:
        before = furnished(found)
        found.up()
        made = kinds(found, before)
        assert not made & {*RULES, *OF_NETWORKS}, made


def test_rules_in_a_shared_network_of_google_are_in_its_project_and_for_the_fleet_s_tags(tmp_path: Path) -> None:
    with rehearse(tmp_path, fleet("gcp")) as found:
        furnished(found)
        found.up()
        rules = found.cloud.records_of(":Firewall")
        assert {record.inputs["project"] for record in rules} == {"company-network"}
        assert {tag for record in rules for tag in record.inputs["targetTags"]} == {"demo-serving", "demo-gateway"}
        assert all(record.inputs["network"] == "projects/company-network/global/networks/company" for record in rules)
        host = found.cloud.named(":Instance", "main-0").inputs
        assert host["serviceAccount"] == {
            "email": "inference@company-ml.iam.gserviceaccount.com",
            "scopes": ["cloud-platform"],
        }
        assert "serviceAccount" not in found.cloud.named(":Instance", "gateway-0").inputs


def _wrong_zone(found: Rehearsal) -> None:
    found.cloud.change(found.cloud.named(":Subnet", "subnet-0000000b"), "availabilityZone", "us-east-1f")


def _wrong_vpc(found: Rehearsal) -> None:
    found.cloud.change(found.cloud.named(":Subnet", "subnet-0000000b"), "vpcId", "vpc-00000009")


def _no_subnet(found: Rehearsal) -> None:
    found.cloud.drop(found.cloud.named(":Subnet", "subnet-0000000b"))


def _public_range(found: Rehearsal) -> None:
    found.cloud.change(found.cloud.named(":Subnet", "subnet-0000000b"), "cidrBlock", "100.64.0.0/24")


def _other_network(found: Rehearsal) -> None:
    subnet = found.cloud.records_of(":Subnetwork")[0]
    found.cloud.change(subnet, "network", "https://www.googleapis.com/compute/v1/projects/p/global/networks/default")


def _other_region_of_azure(found: Rehearsal) -> None:
    found.cloud.change(found.cloud.records_of(":VirtualNetwork")[0], "location", "northeurope")


def _other_domain(found: Rehearsal) -> None:
    found.cloud.change(found.cloud.records_of(":Subnet")[0], "availabilityDomain", "Uocm:US-CHICAGO-1-AD-3")


def _other_region(found: Rehearsal) -> None:
    found.cloud.change(found.cloud.records_of(":Vpc")[0], "region", "ams3")


@pytest.mark.parametrize(
    ("cloud", "change", "key", "says"),
    [
        ("aws", _wrong_zone, "subnets.us-east-1b", "its zone is us-east-1f, not us-east-1b"),
        ("aws", _wrong_vpc, "subnets.us-east-1b", "its VPC is vpc-00000009, not vpc-00000001"),
        ("aws", _no_subnet, "subnets.us-east-1b", "does not show it"),
        ("aws", _public_range, "subnets.us-east-1b", "100.64.0.0/24 is not private"),
        ("gcp", _other_network, "subnetwork", "its network is default, not company"),
        ("azure", _other_region_of_azure, "subnet", "its region is northeurope, not westeurope"),
        (
            "oci",
            _other_domain,
            "subnet",
            "its availability domain is Uocm:US-CHICAGO-1-AD-3, not Uocm:US-CHICAGO-1-AD-1",
        ),
        ("digitalocean", _other_region, "vpc_uuid", "its region is ams3, not nyc2"),
    ],
)
def test_a_network_that_is_elsewhere_than_the_fleet_says_is_refused_before_anything_is_made(
    cloud: str, change: Callable[[Rehearsal], None], key: str, says: str, tmp_path: Path
) -> None:
    with rehearse(tmp_path, fleet(cloud)) as found:
        furnished(found)
        change(found)
        before = found.cloud.records
        # A preview ends at the same place of the program.
        for words in (("preview",), ("up", *QUIET)) if change is _wrong_zone else (("up", *QUIET),):
            said = " ".join(found.stage.pulumi(*words, check=False).split())
            assert f"pools.main.placement.existing.{key}: " in said
            assert says in said
            assert "Traceback" not in said
        assert difference(before, found.cloud.records) == ""


@pytest.mark.parametrize("cloud", ["aws", "oci"])
def test_credentials_of_another_account_read_and_make_nothing(cloud: str, tmp_path: Path) -> None:
    with rehearse(tmp_path, fleet(cloud)) as found:
        before = furnished(found)
        found.cloud.account.ids[cloud] = {"aws": "999988887777", "oci": "ocid1.tenancy.oc1..other"}[cloud]
        for words in (("preview",), ("up", *QUIET)):
            said = " ".join(found.stage.pulumi(*words, check=False).split())
            assert {"aws": "AWS account ID not allowed: 999988887777", "oci": "do not see the tenancy"}[cloud] in said
            assert "Traceback" not in said
        assert difference(before, found.cloud.records) == ""
        assert not (found.stage.folder / "stack.json").exists()


def test_a_stack_of_one_account_is_neither_refreshed_nor_destroyed_with_another_one(tmp_path: Path) -> None:
    with rehearse(tmp_path, fleet("aws")) as found:
        furnished(found)
        found.up()
        before = found.cloud.records
        found.cloud.account.ids["aws"] = "999988887777"
        for words in (("refresh", *QUIET), ("destroy", *QUIET)):
            assert "not allowed: 999988887777" in found.stage.pulumi(*words, check=False)
        assert difference(before, found.cloud.records) == ""


def test_azure_uses_the_subscription_of_the_fleet(tmp_path: Path) -> None:
    with rehearse(tmp_path, fleet("azure")) as found:
        furnished(found)
        found.up()
        resources = found.state()["resources"]
        assert {each["inputs"]["subscriptionId"] for each in resources if each["type"].endswith(":azure-native")} == {
            SUBSCRIPTION
        }
        identity = found.cloud.named(":VirtualMachine", "main-0").inputs["identity"]
        assert identity["userAssignedIdentities"] == [f"{AZURE}.ManagedIdentity/userAssignedIdentities/inference"]
        assert "identity" not in found.cloud.named(":VirtualMachine", "gateway-0").inputs


def test_the_example_of_a_company_makes_hosts_and_nothing_beside_them(tmp_path: Path) -> None:
    example = {**yaml.safe_load(script.copy("example-company", 1)), "protect": False}
    with rehearse(tmp_path, example) as found:
        before = furnished(found)
        found.up()
        made = [record for record in found.cloud.records if record not in before]
        assert {record.type for record in made} == {"aws:ec2/instance:Instance"}
        profiles = {record.name: record.inputs.get("iamInstanceProfile") for record in made}
        assert profiles == {"h100-0": "inference-hosts", "gateway-0": None, "gateway-1": None}
        found.stage.pulumi("destroy", *QUIET[:2])
        assert difference(before, found.cloud.records) == ""
