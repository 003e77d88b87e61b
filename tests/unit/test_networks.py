"""The networks of a fleet: their ranges, what may be joined, and who is reached through whom then."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet import plan, private_networks, ssh_routes

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHostKeyHostKeyHostKeyHostKeyHostKeyHostKeyH"
EAST: dict[str, Any] = {"region": "us-east-1", "zone": "us-east-1a"}
WEST: dict[str, Any] = {"region": "us-west-2", "zone": "us-west-2a"}


def load(tmp_path: Path, pools: Mapping[str, Mapping[str, Any]], gateway: Any = None, **access: Any) -> plan.Plan:
    """The plan of pools in AWS, unless they say another cloud, of one host each, unless they say more."""
    row = {"host_class": "h100-8", "cloud": "aws", "hosts": 1}
    fleet = {
        "fleet": "demo",
        "defaults": {"model": "openai/gpt-oss-120b"},
        "pools": {name: {**row, **pool} for name, pool in pools.items()},
        "gateway": gateway or {"hosts": 1},
        "access": {"ssh_from": ["203.0.113.0/24"], **access},
    }
    folder = tmp_path / "demo"
    folder.mkdir(exist_ok=True)
    (folder / "fleet.yml").write_text(yaml.safe_dump(fleet, sort_keys=False), encoding="utf-8")
    return plan.load(folder)


def ranges(found: plan.Plan) -> dict[str, str]:
    return {name: str(private_networks.block(hosts)) for name, hosts in private_networks.members(found.hosts).items()}


def test_a_network_has_the_usual_range_unless_one_of_its_pools_says_another(tmp_path: Path) -> None:
    pools = {"one": {"placement": EAST}, "two": {"placement": {**EAST, "network": "10.61.0.0/16"}}}
    assert ranges(load(tmp_path, {"one": pools["one"]})) == {"aws us-east-1": "10.60.0.0/16"}
    assert ranges(load(tmp_path, pools)) == {"aws us-east-1": "10.61.0.0/16"}


def test_projects_and_compartments_have_networks_of_their_own(tmp_path: Path) -> None:
    where = {"region": "us-east4", "zone": "us-east4-a"}
    pools = {
        name: {"cloud": "gcp", "placement": {**where, "project": f"my-{name}"}} for name in ("project", "other-project")
    }
    with pytest.raises(FleetError, match="is in gcp my-other-project us-east4, and the gateway is in gcp my-project"):
        load(tmp_path, pools, ssh_through="direct")


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ("10.61.0.0", "has the wrong size"),
        ("10.61.0.1/16", "is not a network in CIDR form"),
        ("198.51.100.0/24", "is not a private range"),
        ("fd00::/48", "is not a private range"),
        ("10.0.0.0/8", "from /16 to /22"),
        ("192.168.1.0/24", "from /16 to /22"),
    ],
)
def test_what_no_network_can_be(network: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=says) as caught:
        load(tmp_path, {"main": {"placement": {**EAST, "network": network}}})
    assert caught.value.key == "pools.main.placement.network"


@pytest.mark.parametrize(
    ("pools", "access", "key", "says"),
    [
        (
            {
                "one": {"placement": {**EAST, "network": "10.61.0.0/16"}},
                "two": {"placement": {**EAST, "network": "10.62.0.0/16"}},
            },
            {},
            "pools.two.placement.network",
            r"is 10.62.0.0/16, and one has 10.61.0.0/16 for the same network, aws us-east-1",
        ),
        (
            {"main": {"placement": {**EAST, "network": "10.61.0.0/22"}, "hosts": 27}},
            {},
            "pools.main.placement.network",
            r"10.61.0.0/22, 32 parts of it with room for 27 each, is too small for 28 hosts",
        ),
        (
            {"one": {"placement": EAST}, "two": {"placement": WEST}},
            {"joined_networks": True},
            "pools.two.placement",
            r"10.60.0.0/16 of aws us-west-2 overlaps with 10.60.0.0/16 of aws us-east-1",
        ),
        (
            {
                "one": {"placement": {**EAST, "network": "10.61.0.0/16"}},
                "two": {"placement": {**WEST, "network": "10.61.240.0/20"}},
            },
            {"joined_networks": True},
            "pools.two.placement.network",
            r"10.61.240.0/20 of aws us-west-2 overlaps with 10.61.0.0/16",
        ),
        (
            {
                "one": {"placement": EAST},
                "two": {"cloud": "digitalocean", "host_class": "mi325x-8", "placement": {"region": "nyc2"}},
            },
            {"joined_networks": True},
            "pools.two.placement",
            r"gives no 'network', and digitalocean nyc2 is joined with others",
        ),
    ],
    ids=["two ranges", "too small", "the same", "one in the other", "unknown"],
)
def test_ranges_that_cannot_be(
    pools: dict[str, Any], access: dict[str, Any], key: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(FleetError, match=says) as caught:
        load(tmp_path, pools, **access)
    assert (caught.value.exit_code, caught.value.file is not None) == (2, True)
    assert (caught.value.key or "").startswith(key.removesuffix(".network"))


def test_networks_that_are_not_joined_may_have_one_range(tmp_path: Path) -> None:
    pools = {"one": {"placement": EAST}, "two": {"placement": {**WEST, "public_address": True}}}
    assert set(ranges(load(tmp_path, pools, gateway={"hosts": 0}, ssh_through="direct")).values()) == {"10.60.0.0/16"}


def static(address: str) -> dict[str, Any]:
    return {"plain": True, "static": {"door": {"address": address, "ssh_host_key": KEY}}}


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("10.60.7.7", r"10.60.7.7 is in 10.60.0.0/16, the range of aws us-east-1"),
        ("door.example.org", "'door.example.org' is not a private IPv4 address"),
        ("198.51.100.7", "'198.51.100.7' is not a private IPv4 address"),
    ],
)
def test_a_gateway_of_one_s_own_is_let_in_by_its_address(address: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=says) as caught:
        load(tmp_path, {"main": {"placement": EAST}}, static(address), joined_networks=True)
    assert caught.value.key == "gateway.static.door.address"
    load(tmp_path, {"main": {"placement": EAST}}, static("192.168.7.7"), joined_networks=True)


def test_a_gateway_elsewhere_has_not_the_range_of_the_first_pool(tmp_path: Path) -> None:
    pools = {
        "one": {"placement": {**EAST, "network": "10.61.0.0/16"}},
        "two": {"placement": {**WEST, "network": "10.62.0.0/16"}},
    }
    found = load(tmp_path, pools, {"hosts": 1, "placement": WEST}, joined_networks=True)
    assert ranges(found) == {"aws us-east-1": "10.61.0.0/16", "aws us-west-2": "10.62.0.0/16"}


def test_joined_networks_are_reached_through_one_gateway(tmp_path: Path) -> None:
    pools = {"one": {"placement": EAST}, "two": {"placement": {**WEST, "network": "10.61.0.0/16"}}}
    with pytest.raises(FleetError, match="is in aws us-west-2, and the gateway is in aws us-east-1"):
        load(tmp_path, pools)
    found = load(tmp_path, pools, joined_networks=True)
    assert ssh_routes.jumps(found.hosts, found.access) == {"one-0": "gateway-0", "two-0": "gateway-0"}


@pytest.mark.parametrize(
    ("parts", "index", "wanted"),
    [(1, 0, "10.60.0.0/16"), (2, 1, "10.60.128.0/17"), (32, 0, "10.60.0.0/21"), (32, 31, "10.60.248.0/21")],
)
def test_the_parts_of_a_network(parts: int, index: int, wanted: str) -> None:
    assert str(private_networks.part(IPv4Network("10.60.0.0/16"), parts, index)) == wanted


@pytest.mark.parametrize(
    "example", sorted(path.parent.name for path in (paths.root() / "inventories").glob("example-*/*.yml"))
)
def test_the_networks_of_an_example_are_apart(example: str) -> None:
    found = plan.load((paths.root() / "inventories") / example)
    rented = private_networks.members(host for host in found.hosts if host.rented)
    if found.access.joined_networks:
        assert len({private_networks.block(hosts) for hosts in rented.values()}) == len(rented)
