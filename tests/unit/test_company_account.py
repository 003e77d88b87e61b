"""What a fleet says of its account: networks, identities, account ids, tags, secrets; each fault by its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_clouds
import yaml

from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet import plan, tags
from vllm_fleet.fleet.plain_secrets import FORMS

VPC = {
    "vpc": "vpc-00000001",
    "subnets": {"us-east-1a": "subnet-0000000a", "us-east-1b": "subnet-0000000b"},
}
GROUP = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/net/providers/Microsoft"
PLACEMENTS = {**test_clouds.PLACEMENTS, "aws": {"region": "us-east-1", "zones": ["us-east-1a", "us-east-1b"]}}
CLASSES = {"azure": "mi300x-8", "oci": "mi355x-8", "digitalocean": "mi325x-8"}


def load(folder: Path, cloud: str = "aws", placement: dict[str, Any] | None = None, **more: Any) -> plan.Plan:
    """A fleet of one pool, and a gateway beside it."""
    data = {
        "fleet": "demo",
        "defaults": {"model": "openai/gpt-oss-20b"},
        "pools": {
            "main": {
                "host_class": CLASSES.get(cloud, "h100-8"),
                "cloud": cloud,
                "placement": {**PLACEMENTS[cloud], **(placement or {})},
                "hosts": 1,
            }
        },
        "gateway": {"hosts": 1, "plain": True},
        "access": {"ssh_from": ["203.0.113.0/24"], "ssh_through": "direct"},
        **more,
    }
    directory = folder / str(data["fleet"])
    directory.mkdir(exist_ok=True)
    (directory / "fleet.yml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return plan.load(directory)


def refused(folder: Path, key: str, says: str, **more: Any) -> FleetError:
    """The error at a key, with its line."""
    with pytest.raises(FleetError) as caught:
        load(folder, **more)
    errors = {error.key: error for error in (caught.value, *caught.value.others)}
    assert key in errors, errors
    assert says in errors[key].message
    assert errors[key].exit_code == 2
    assert errors[key].line
    return errors[key]


def test_a_gateway_stands_in_the_network_of_the_first_pool_without_its_rights(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        placement={"existing": {**VPC, "security_groups": ["sg-00000001"]}, "instance_profile": "inference"},
        gateway={"hosts": 1, "placement": {"existing": {"security_groups": ["sg-00000002"]}}},
    )
    gateway = found.host("gateway-0").rented
    assert gateway
    assert gateway.placement.model_dump()["existing"] == {**VPC, "security_groups": ["sg-00000002"], "range": None}
    assert gateway.placement.model_dump()["instance_profile"] is None
    # In a subnet of the account only its owner knows whether the internet reaches it.
    assert gateway.placement.public_address is False


@pytest.mark.parametrize(
    ("cloud", "placement", "key", "says"),
    [
        (
            "aws",
            {"existing": {**VPC, "subnets": {"us-east-1a": "subnet-0000000a"}}},
            "",
            "none for its zone us-east-1b",
        ),
        (
            "aws",
            {"existing": {**VPC, "subnets": {**VPC["subnets"], "us-west-2a": "subnet-0000000c"}}},  # type: ignore[dict-item]
            "",
            "us-west-2a, which is not a zone of us-east-1",
        ),
        (
            "aws",
            {"existing": {**VPC, "subnets": dict.fromkeys(("us-east-1a", "us-east-1b"), "subnet-0000000a")}},
            ".existing",
            "a subnet of AWS is in one zone",
        ),
        ("aws", {"existing": {**VPC, "vpc": "main"}}, ".existing.vpc", "is not the id of a VPC"),
        ("aws", {"existing": VPC, "network": "10.8.0.0/16"}, "", "'existing' and 'network'"),
        ("aws", {"existing": VPC, "outbound": "none"}, "", "'existing' and 'outbound'"),
        ("aws", {"existing": {**VPC, "range": "100.64.0.0/16"}}, ".existing.range", "is not in 10.0.0.0/8"),
        ("aws", {"instance_profile": "arn:aws:iam::1:instance-profile/x"}, ".instance_profile", "the end of its ARN"),
        (
            "gcp",
            {"existing": {"network": "projects/p/global/networks/n", "subnetwork": "s"}},
            ".existing.network",
            "write the name alone, without a path",
        ),
        ("gcp", {"scopes": ["cloud-platform"]}, "", "without the 'service_account'"),
        ("gcp", {"service_account": "me@example.com"}, ".service_account", "write its e-mail address"),
        ("azure", {"existing": {"subnet": "hosts"}}, ".existing.subnet", "is not the resource id of a subnet"),
        ("azure", {"managed_identity": "inference"}, ".managed_identity", "is not the resource id"),
        (
            "oci",
            {"existing": {"vcn": "company", "subnet": "ocid1.subnet.a"}},
            ".existing.vcn",
            "is not the OCID of a network",
        ),
        ("digitalocean", {"existing": {"vpc_uuid": "company"}}, ".existing.vpc_uuid", "is not the id of a VPC"),
    ],
)
def test_a_wrong_network_or_identity_is_told_with_its_line(
    cloud: str, placement: dict[str, Any], key: str, says: str, tmp_path: Path
) -> None:
    refused(tmp_path, f"pools.main.placement{key}", says, cloud=cloud, placement=placement)


@pytest.mark.parametrize(
    ("existing", "says"),
    [
        ({**VPC, "vpc": "vpc-00000002"}, "is in vpc-00000002, and main is in vpc-00000001: a fleet has one network"),
        (None, "is in one that the stack makes, and main is in vpc-00000001"),
        ({**VPC, "security_groups": ["sg-00000001"]}, "firewall rules of the account, and main has rules of the stack"),
    ],
)
def test_two_pools_that_need_different_networks_are_refused(
    existing: dict[str, Any] | None, says: str, tmp_path: Path
) -> None:
    pools = {
        name: {
            "host_class": "h100-8",
            "cloud": "aws",
            "placement": {**PLACEMENTS["aws"], **({"existing": one} if one else {})},
            "hosts": 1,
        }
        for name, one in (("main", VPC), ("other", existing))
    }
    error = refused(tmp_path, "pools.other.placement.existing", says, pools=pools)
    assert error.hint


def test_joined_networks_need_the_range_of_one_that_exists(tmp_path: Path) -> None:
    access = {"ssh_from": ["203.0.113.0/24"], "joined_networks": True}
    refused(tmp_path, "pools.main.placement.existing", "gives no 'range'", placement={"existing": VPC}, access=access)
    found = load(tmp_path, placement={"existing": {**VPC, "range": "10.8.0.0/26"}}, access=access)
    assert found.hosts


def test_the_accounts_that_a_fleet_allows(tmp_path: Path) -> None:
    assert load(tmp_path, account={"aws": "011122223333"}).spec.account.aws == "011122223333"
    refused(tmp_path, "account.aws", "write the account id in quotes", account={"aws": 111122223333})
    refused(tmp_path, "account.aws", "write its twelve digits in quotes", account={"aws": "1111"})
    refused(tmp_path, "account.gcp", "the fleet has no host at gcp", account={"gcp": ["demo-project"]})
    refused(
        tmp_path,
        "pools.main.placement.project",
        "is 'demo-project', and account.gcp allows other-project",
        cloud="gcp",
        account={"gcp": ["other-project"]},
    )
    assert load(tmp_path, cloud="gcp", account={"gcp": ["demo-project", "other-project"]}).hosts


@pytest.mark.parametrize(
    ("cloud", "own", "says"),
    [
        ("aws", {"aws:owner": "me"}, "does not take the key of this tag: 1 to 128"),
        ("aws", {"AWS:owner": "me"}, "does not take the key"),
        ("aws", {"k" * 129: "v"}, "does not take the key"),
        ("aws", {"owner": "v" * 257}, "does not take the value of this tag: at most 256"),
        ("aws", {"owner": "a;b"}, "does not take the value"),
        ("gcp", {"CostCentre": "x"}, "does not take the key of this tag: 1 to 63 lower-case"),
        ("gcp", {"owner": "me@example.com"}, "does not take the value of this tag: at most 63 lower-case"),
        ("gcp", {"4711": "x"}, "a letter first"),
        ("azure", {"Microsoft.owner": "x"}, "not 'azure', 'microsoft' or 'windows' first"),
        ("azure", {"a/b": "x"}, "without <>%&"),
        ("oci", {"cost centre": "x"}, "without blanks"),
        ("digitalocean", {"owner": "me@example.com"}, "a tag is 'key:value'"),
        *(("aws", {key: "x"}, "the stack sets the tag") for key in ("fleet", "managed-by", "Name", "Host")),
        ("aws", {"Owner": "x", "owner": "y"}, "which is the same tag at Azure"),
    ],
)
def test_a_tag_that_a_cloud_does_not_take_is_told_with_its_line(
    cloud: str, own: dict[str, str], says: str, tmp_path: Path
) -> None:
    key = list(own)[-1]
    shown = key if len(key) < 100 else f"{key[:60]}..."
    error = refused(tmp_path, f"tags.{shown}", says, cloud=cloud, tags=own)
    assert error.hint


@pytest.mark.parametrize("cloud", PLACEMENTS)
def test_as_many_tags_as_a_resource_takes(cloud: str, tmp_path: Path) -> None:
    most = tags.RULES[cloud].most - len(tags.RESERVED)
    full = {f"key-{number}": "x" for number in range(most)}
    assert load(tmp_path, cloud=cloud, tags=full).spec.tags == full
    refused(tmp_path, "tags", f"has {most + 1} tags", cloud=cloud, tags={**full, "one-more": "x"})


#: One made-up secret of each form.
SECRETS = {
    "an access key of AWS": "AKIA" + "B" * 16,
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "a token of Hugging Face": "hf_" + "a" * 34,
    "a token of GitHub": "ghp_" + "a" * 36,
    "a token of GitLab": "glpat-" + "a" * 20,
    "a key of Google": "AIza" + "a" * 35,
    "a token of DigitalOcean": "dop_v1_" + "a" * 64,
    "a token of Pulumi": "pul-" + "a" * 40,
    "a token of Slack": "xoxb-" + "1" * 12,
    "a JSON web token": "eyJ" + "a" * 12 + ".eyJ" + "b" * 12 + ".c",
    "a URL with a password": "https://me:geheim@example.com/x",
}


@pytest.mark.parametrize("what", FORMS)
def test_a_secret_in_plain_is_told_with_its_line_and_never_repeated(what: str, tmp_path: Path) -> None:
    error = refused(tmp_path, "tags.note", f"contains {what} in plain", tags={"note": f"it is {SECRETS[what]}"})
    whole = f"{error} {[str(other) for other in error.others]}"
    assert SECRETS[what][8:] not in whole


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"tags": {"db-password": "geheim"}}, "tags.db-password"),
        ({"proxy": {"password": "geheim"}}, "proxy.password"),
        ({"access": {"ssh_from": ["203.0.113.0/24"], "api_key": "geheim"}}, "access.api_key"),
    ],
)
def test_the_name_of_a_key_tells_a_secret_too(more: dict[str, Any], key: str, tmp_path: Path) -> None:
    error = refused(tmp_path, key, "is a secret in plain, by the name of its key", **more)
    assert "geheim" not in f"{error} {[str(other) for other in error.others]}"


def test_what_only_looks_like_a_secret_is_taken(tmp_path: Path) -> None:
    own = {"note": "AKIA is no key and hf_ neither", "token-file": "hf-token", "url": "https://example.com:8443/x"}
    assert load(tmp_path, tags=own).spec.tags == own


def test_an_account_is_not_called_unused_because_its_pool_has_an_error(tmp_path: Path) -> None:
    with pytest.raises(FleetError) as caught:
        load(tmp_path, account={"aws": "210987654321"}, placement={"region": "eu-west-1"})
    assert [error.key for error in (caught.value, *caught.value.others)] == ["pools.main.placement"]


@pytest.mark.parametrize("what", FORMS)
def test_a_secret_in_a_comment_or_as_a_key_is_told_too(what: str, tmp_path: Path) -> None:
    load(tmp_path)
    file = tmp_path / "demo" / "fleet.yml"
    text = file.read_text(encoding="utf-8")
    for more, line in ((f"tags: {{'{SECRETS[what]}': x}}", None), (f"# it was {SECRETS[what]}", text.count("\n") + 1)):
        file.write_text(f"{text}{more}\n", encoding="utf-8")
        with pytest.raises(FleetError, match=f"contains {what} in plain") as caught:
            plan.load(tmp_path / "demo")
        assert line in (None, caught.value.line)
        assert SECRETS[what][8:] not in f"{caught.value} {[str(other) for other in caught.value.others]}"


@pytest.mark.parametrize(
    ("placement", "key", "says"),
    [
        ({"existing": {**VPC, "vpc": "vpc-main"}}, "existing.vpc", "is not the id of a VPC: write it such as vpc-"),
        ({"instance_profile": "arn:aws:iam::1:instance-profile/x"}, "instance_profile", "the end of its ARN"),
        ({"project": "demo-project"}, "project", "it is a key of gcp, not of aws: remove it"),
        ({"run_hours": 24}, "run_hours", "it is a key of gcp, not of aws: remove it"),
        ({"existing": {**VPC, "subnetwork": "x"}}, "existing.subnetwork", "it is a key of gcp, not of aws: remove it"),
        ({"regoin": "us-east-1"}, "regoin", "did you mean region?"),
    ],
)
def test_what_is_of_another_form_or_cloud_is_told_so(
    placement: dict[str, Any], key: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(FleetError) as caught:
        load(tmp_path, placement=placement)
    errors = [error for error in (caught.value, *caught.value.others) if error.key == f"pools.main.placement.{key}"]
    assert says in str(errors[0])


@pytest.mark.parametrize(
    ("networks", "first"),
    [
        (["0.0.0.0/0"], 0),
        (["0.0.0.0/1", "128.0.0.0/1"], 0),
        (["10.0.0.0/16", "64.0.0.0/2"], 1),
        (["::/0"], 0),
        (["10.0.0.0/16", "8000::/1", "::/1"], 1),
    ],
)
def test_networks_that_together_are_the_internet_are_refused(networks: list[str], first: int, tmp_path: Path) -> None:
    refused(tmp_path, f"access.ssh_from.{first}", "opens SSH to the internet", access={"ssh_from": networks})


def test_a_whole_company_is_no_internet(tmp_path: Path) -> None:
    assert load(tmp_path, access={"ssh_from": ["10.0.0.0/8", "192.168.0.0/16", "2a00::/16"]}).hosts


def test_keys_that_everyone_can_read_are_not_sent_over_the_whole_internet(tmp_path: Path) -> None:
    says = "opens gateways that take API keys without TLS to the internet (0.0.0.0/0)"
    refused(tmp_path, "access.api_from.0", says, access={"ssh_from": ["203.0.113.0/24"], "api_from": ["0.0.0.0/0"]})
