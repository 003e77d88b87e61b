"""A host of a rented fleet that serves the artifacts: the others reach it, of joined networks too, and nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest
from cloud_fleets import write
from recording import Recorder
from test_joined_networks import clouds, fleet, run  # noqa: F401 - a fixture
from test_policy import POOLS, WORLD, Opening, openings

PORTS = {(8070, 8070), (5000, 5000)}


def to_mirror(made: Recorder) -> list[Opening]:
    found = [each for each in openings(made.resources) if each.ports in PORTS]
    assert not [each for each in found if WORLD & set(each.sources)]
    return found


@pytest.mark.parametrize("host", ["gateway-0", "main-1"])
@pytest.mark.parametrize("cloud", list(POOLS))
def test_hosts_reach_the_mirror(cloud: str, host: str, tmp_path: Path, clouds: Recorder) -> None:  # noqa: F811
    pool = {**POOLS[cloud], "hosts": 2}
    run(write(tmp_path, cloud, pool, mirror={"host": host, "registry_port": 5000}))
    found = to_mirror(clouds)
    assert {each.ports for each in found} == PORTS
    kind = "gateway" if host == "gateway-0" else "serving"
    assert all(kind in each.rule or "mirror" in each.rule for each in found)
    for ports in PORTS:
        said = str([each.sources for each in found if each.ports == ports])
        assert "serving" in said, "the groups or tags of all hosts of the fleet"
        assert "gateway" in said, "the groups or tags of all hosts of the fleet"
        assert "/16" not in said, "and no network"


@pytest.mark.parametrize("cloud", list(POOLS))
def test_a_joined_network_reaches_the_mirror_of_another(
    cloud: str,
    tmp_path: Path,
    clouds: Recorder,  # noqa: F811
) -> None:
    run(fleet(tmp_path, cloud, "aws" if cloud != "aws" else "gcp", mirror={"host": "gateway-0", "registry_port": 5000}))
    far = [each for each in to_mirror(clouds) if "10.72.0.0/16" in each.sources]
    assert {each.ports for each in far} == PORTS


def test_without_a_mirror_of_its_own_a_fleet_opens_no_port_for_it(
    tmp_path: Path,
    clouds: Recorder,  # noqa: F811
) -> None:
    run(write(tmp_path, "aws", {**POOLS["aws"], "hosts": 2}, mirror={"url": "http://192.0.2.9:8070"}))
    assert to_mirror(clouds) == []
