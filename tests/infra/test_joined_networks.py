"""Networks that are joined: each lets the gateways of the others in, at their private addresses and no further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pulumi
import pytest
from cloud_fleets import built, write
from host_keys import public_key
from recording import Recorder
from test_policy import FUNCTIONS, POOLS, Opening, openings, table_openings

from infra.hosts import SERVICE_PORTS
from vllm_fleet.fleet import plan
from vllm_fleet.host.haproxy import TABLES_PORT

#: What the recorder gives as the private address of a gateway.
INSIDE = {
    "aws": "gateway-0/privateIp",
    "gcp": "gateway-0/private",
    "azure": "gateway-0/private",
    "oci": "gateway-0/privateIp",
    "digitalocean": "gateway-0/ipv4AddressPrivate",
}
AWS: dict[str, Any] = {"host_class": "h100-8", "placement": {"region": "eu-west-1", "zone": "eu-west-1a"}}
TLS = {"tls": {"certificate_file": "a.pem"}}
STATIC = {"static": {"door": {"address": "192.168.7.7", "ssh_host_key": public_key("Door")}}}


def fleet(folder: Path, first: str, second: str, **more: Any) -> plan.Plan:
    """Two pools in two networks; the gateway stands beside the first."""
    rows = [POOLS[first], AWS if second == "aws" else POOLS[second]]
    near, far = (
        {**row, "cloud": cloud, "hosts": 2, "placement": {**row["placement"], "network": f"10.{number}.0.0/16"}}
        for number, (cloud, row) in enumerate(zip((first, second), rows, strict=True), start=71)
    )
    access = {"ssh_from": ["203.0.113.0/24"], "api_from": ["0.0.0.0/0"], "joined_networks": True}
    return write(folder, first, near, pools={"near": near, "far": far}, access=access, **more)


def from_afar(found: list[Opening], address: str) -> set[tuple[int, int]]:
    """The ports that a gateway of another network may reach, by its address."""
    return {each.ports for each in found if {address, f"{address}/32"} & set(each.sources)}


@pytest.fixture
def clouds(recorder: Recorder) -> Recorder:
    recorder.functions.update(FUNCTIONS)
    return recorder


def run(found: plan.Plan) -> None:
    pulumi.runtime.test(lambda: built(found, lambda _: None))()


#: The gateways' cloud, and another one.
PAIRS = [("aws", "aws"), *(("aws", each) for each in POOLS if each != "aws"), *((each, "aws") for each in POOLS)]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_joined_network_lets_the_gateways_in_at_their_addresses(
    first: str, second: str, tmp_path: Path, clouds: Recorder
) -> None:
    run(fleet(tmp_path, first, second))
    found = list(openings(clouds.resources))
    assert from_afar(found, INSIDE[first]) == {SERVICE_PORTS, (22, 22)}
    blocks = str([each.inputs for each in clouds.resources if "Firewall" not in each.type])
    assert "10.71." in blocks
    assert "10.72." in blocks
    assert "10.60." not in blocks


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_gateways_share_tables_in_their_own_network_only(
    first: str, second: str, tmp_path: Path, clouds: Recorder
) -> None:
    run(fleet(tmp_path, first, second, gateway={"hosts": 2, "affinity": "session", **TLS}))
    found = list(openings(clouds.resources))
    (rule,) = table_openings(clouds.resources)
    assert rule.ports == (TABLES_PORT, TABLES_PORT)
    (source,) = rule.sources
    assert source.endswith("-gateway")
    for name in ("gateway-0", "gateway-1"):
        address = INSIDE[first].replace("gateway-0", name)
        assert from_afar(found, address) == {SERVICE_PORTS, (22, 22)}


def test_a_gateway_of_one_s_own_is_let_in_too(tmp_path: Path, clouds: Recorder) -> None:
    run(fleet(tmp_path, "aws", "azure", gateway=STATIC))
    found = [each for each in openings(clouds.resources) if "192.168.7.7" in str(each.sources)]
    assert {each.ports for each in found} == {SERVICE_PORTS, (22, 22)}
    assert len(found) == 4, "in both networks"


def test_hosts_with_an_address_on_the_internet_need_no_way_for_ssh(tmp_path: Path, clouds: Recorder) -> None:
    found = fleet(tmp_path, "gcp", "aws")
    text = (found.directory / "fleet.yml").read_text(encoding="utf-8")
    assert text.count("zone: eu-west-1a") == 1
    text = text.replace("zone: eu-west-1a", "zone: eu-west-1a\n      public_address: true")
    (found.directory / "fleet.yml").write_text(text, encoding="utf-8")
    run(plan.load(found.directory))
    assert from_afar(list(openings(clouds.resources)), INSIDE["gcp"]) == {SERVICE_PORTS}
