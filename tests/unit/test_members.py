"""``hosts``: a number of members, or their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet import plan


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
