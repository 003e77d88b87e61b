"""The names in the clouds: the table of the longest ones against what the program asks for, with everything on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml
from cloud_fleets import built, write
from recording import Recorder
from rehearsing import rehearse
from test_policy import FUNCTIONS, POOLS

from lab.rehearsal import wire
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet import plan, resource_names
from vllm_fleet.schema.fleet import Fleet

#: Properties that are names in a cloud; Name tags and properties of other kinds are none.
NAMES = {
    "aws": ("name",),
    "gcp": ("name", "tags.*"),
    "azure": (
        *("resourceGroupName", "virtualNetworkName", "networkSecurityGroupName", "applicationSecurityGroupName"),
        *("natGatewayName", "publicIpAddressName", "networkInterfaceName", "vmName"),
    ),
    "oci": ("displayName",),
    "digitalocean": ("name",),
}
#: Some host key.
KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIHostKeyHostKeyHostKeyHostKeyHostKeyHostKeyH"


def everything(cloud: str, folder: Path) -> plan.Plan:
    """A fleet with every option that makes something with a name of its own."""
    pool = {**POOLS[cloud], "cloud": cloud, "hosts": 2}
    placement = dict(pool["placement"])
    if cloud == "aws":
        placement = {**placement, "fabric": False, "placement_group": True}
    far = {"digitalocean": "10.62.0.0/16", **dict.fromkeys(("aws", "gcp", "azure", "oci"), "10.60.0.0/16")}[cloud]
    more: dict[str, Any] = {
        "pools": {"main": {**pool, "placement": {**placement, "network": far}}},
        # Gateways in another cloud: firewalls of this one name their addresses.
        "gateway": {
            "static": {
                "gateway-0": {"address": "192.168.1.2", "ssh_host_key": f"ssh-ed25519 {KEY}"},
            },
            "plain": True,
        },
        "access": {
            "ssh_from": ["203.0.113.0/24", "2001:db8::/64"],
            "api_from": ["198.51.100.0/24", "2001:db8::/64"],
            "joined_networks": True,
        },
    }
    return write(folder, cloud, pool, **more)


@pytest.mark.parametrize("cloud", POOLS)
def test_the_table_has_the_longest_name_of_everything_that_is_made(
    cloud: str, tmp_path: Path, recorder: Recorder
) -> None:
    """Of two fleets together: one with a gateway of its own, one with gateways far away and all that is optional."""
    recorder.functions.update(FUNCTIONS)
    gateway = {"aws": {"placement_group": True}}.get(cloud, {})
    near = write(
        tmp_path, cloud, POOLS[cloud], gateway={"hosts": 1, "tls": {"certificate_file": "a.pem"}, "placement": gateway}
    )
    (tmp_path / "far").mkdir()
    far = everything(cloud, tmp_path / "far")
    pulumi.runtime.test(lambda: pulumi.Output.all(built(near, lambda _: None), built(far, lambda _: None)))()
    longest: dict[tuple[str, str], str] = {}
    for each in recorder.resources:
        for at in NAMES[cloud] if each.type.partition(":")[0] in (cloud, "azure-native") else ():
            # Azure's resources also name those that they are in.
            own = cloud != "azure" or at == "vmName" or _named_by(each.type, at)
            for name in wire.values(each.inputs, at) if own else ():
                longest[each.type, at] = max(longest.get((each.type, at), ""), name, key=len)
    hosts = [host for host in near.hosts if host.rented]
    rows: dict[tuple[str, str], int] = {}
    for row, _, name in resource_names.longest_names("demo", hosts):
        for kind in row.types:
            rows[kind, row.at] = max(rows.get((kind, row.at), 0), len(name))
    assert set(longest) == set(rows)
    # Several kinds share a row, so not each of them has the longest name.
    assert {key: name for key, name in longest.items() if len(name) > rows[key]} == {}
    for row in resource_names.FORMS[cloud]:
        length = max(len(longest[kind, row.at]) for kind in row.types)
        assert length == max(rows[kind, row.at] for kind in row.types), row


def _named_by(kind: str, at: str) -> bool:
    return at.lower() == f"{kind.rpartition(':')[2]}name".lower()


def fleet_of(name: str, pool: str) -> dict[str, Any]:
    return {
        "fleet": name,
        "defaults": {"model": "openai/gpt-oss-20b"},
        "pools": {pool: {**POOLS["gcp"], "cloud": "gcp", "hosts": 1}},
        "gateway": {"hosts": 1, "plain": True},
        "access": {"ssh_from": ["203.0.113.0/24"], "api_from": ["198.51.100.0/24"]},
        "protect": False,
    }


#: The longest fleet at Google in us-central1: 63 less '-us-central1' and '-ssh-inside-far'.
LONGEST = "f" * (63 - len("-us-central1") - len("-ssh-inside-far"))


@pytest.mark.network
def test_the_longest_name_really_comes_up_at_google(tmp_path: Path) -> None:
    pool = "p" * (63 - len(LONGEST) - len("--0-models"))
    with rehearse(tmp_path, fleet_of(LONGEST, pool)) as found:
        found.up()
        assert max(len(record.inputs["name"]) for record in found.cloud.records_of(":Disk")) == 63
        assert f"{pool}-0" in found.stack()


@pytest.mark.parametrize(
    ("name", "pool", "key", "says"),
    [
        (f"{LONGEST}f", "p", "fleet", "a firewall rule of gcp would be named .*: 64 letters, and 63 are the most"),
        (LONGEST, "p" * 18, "pools." + "p" * 18, "a disk of gcp would be named .*: 64 letters"),
    ],
)
def test_one_letter_more_is_refused_with_its_line(name: str, pool: str, key: str, says: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    data = fleet_of(name, pool)
    Fleet.model_validate(data)
    (folder / "fleet.yml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    with pytest.raises(FleetError, match=says) as caught:
        plan.load(folder)
    assert (caught.value.key, caught.value.exit_code) == (key, 2)
    assert caught.value.line
    assert "by 1;" in caught.value.hint
