"""``hosts``: a number of members, or their names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet import plan, reserved_names
from vllm_fleet.fleet.host_plan import Kind


def planned(folder: Path, hosts: Any, gateways: Any = 1, **pools: Any) -> plan.Plan:
    main = {"host_class": "cpu-2", "cloud": "lab", "placement": {"bridge": "vf-x", "subnet": "10.70.0.0/24"}}
    fleet = {
        "fleet": "demo",
        "defaults": {"model": "vllm-fleet/lab-gpt-oss"},
        "pools": {"main": {**main, "hosts": hosts}, **{name: {**main, "hosts": row} for name, row in pools.items()}},
        "gateway": {"hosts": gateways},
    }
    at = folder / "demo"
    at.mkdir(exist_ok=True)
    (at / "fleet.yml").write_text(yaml.safe_dump(fleet, sort_keys=False), encoding="utf-8")
    return plan.load(at)


def test_names_in_place_of_the_number_plan_the_same_hosts(tmp_path: Path) -> None:
    numbered = planned(tmp_path, 3, 2)
    named = planned(tmp_path, ["main-0", "main-1", "main-2"], ["gateway-0", "gateway-1"])
    assert named.hosts == numbered.hosts


def test_a_member_keeps_its_number_when_another_leaves(tmp_path: Path) -> None:
    found = planned(tmp_path, ["main-2", "big", "main-0", "main-01"])
    assert {host.name: host.ordinal for host in found.hosts if host.kind == "serving"} == {
        "main-0": 0,
        "main-2": 2,
        "big": 1,
        "main-01": 3,
    }


@pytest.mark.parametrize(
    ("hosts", "more", "says"),
    [
        (["main-0", "main-0"], {}, "pools.main.hosts: names 'main-0' twice"),
        (["Main"], {}, "pools.main.hosts.0: 'Main' is not a name"),
        ([f"m{'x' * 60}"], {}, "is not a name"),
        ([1], {}, "pools.main.hosts.0: must be a valid string, not 1"),
        ({"main-0": None}, {}, "is a number of hosts, or their names"),
        (["main-0", "localhost"], {}, "pools.main.hosts.1: 'localhost' is no name for a host: it is Ansible's own"),
        (["all"], {}, "pools.main.hosts.0: 'all' is no name for a host"),
        (["serving"], {}, "'serving' is no name for a host: it is that of a group of the inventory"),
        (["other-0"], {"other": 1}, "the host 'other-0' is in the pool 'main' too"),
        (["gateway-0"], {}, "the host 'gateway-0' is in the pool 'main' too"),
        ([f"m{number}" for number in range(1001)], {}, "is 1001, and a fleet has at most 1000 hosts"),
        (["a", "b"], {"other": 999}, "has 1001 hosts"),
    ],
)
def test_names_that_cannot_be(tmp_path: Path, hosts: Any, more: dict[str, Any], says: str) -> None:
    with pytest.raises(FleetError) as caught:
        planned(tmp_path, hosts, **more)
    assert says in "\n".join(str(error) for error in (caught.value, *caught.value.others))
    assert caught.value.exit_code == 2


def test_a_gateway_is_not_called_as_the_group_of_gateways(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"gateway\.hosts\.0: 'gateway' is no name for a host"):
        planned(tmp_path, 1, ["gateway"])


def test_no_host_has_the_name_of_a_group_that_the_inventory_plugin_makes() -> None:
    """What has an underscore is the name of no host; the rest is in the table."""
    plugin = (paths.root() / "plugins" / "inventory" / "fleet.py").read_text(encoding="utf-8")
    groups = set(re.findall(r'"([a-z_]+)"', plugin[plugin.index("groups = [") : plugin.index("variables = {")]))
    assert {group for group in groups if "_" not in group} <= set(reserved_names.GROUPS)
    assert get_args(Kind) == ("serving", "gateway")
    assert set(get_args(Kind)) < set(reserved_names.GROUPS)
