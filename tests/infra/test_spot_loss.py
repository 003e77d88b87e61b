"""Hosts that a cloud has ended, rehearsed: the plan says so, and the next run makes them again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rehearsing import QUIET, Rehearsal, aws_fleet, rehearse

# The engine is built from a package registry.
pytestmark = pytest.mark.network

SPOT = {"capacity": {"kind": "spot"}}


def gcp_fleet() -> dict[str, Any]:
    where = {"project": "demo-project", "region": "us-central1", "zone": "us-central1-a"}
    return {
        **aws_fleet(),
        "pools": {"spot": {"cloud": "gcp", "host_class": "h100-8", "hosts": 2, "placement": {**where, **SPOT}}},
    }


@pytest.fixture(params=["aws", pytest.param("gcp", marks=pytest.mark.long)])
def spot(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rehearsal]:
    fleets = {"aws": aws_fleet(spot={"host_class": "h100-1", "hosts": 2, "placement": SPOT}), "gcp": gcp_fleet()}
    with rehearse(tmp_path, fleets[request.param]) as found:
        found.up()
        yield found


def lose(found: Rehearsal, name: str) -> str:
    """Ends a host as its cloud does: AWS terminates it, Google stops it. Returns what the plan will call it."""
    (record,) = [each for each in found.hosts() if each.name == name]
    if record.type.startswith("aws:"):
        found.cloud.drop(record)
        return "create"
    record.inputs["desiredStatus"] = record.outputs["desiredStatus"] = "TERMINATED"
    found.cloud.put(record)
    return "update"


def test_a_spot_host_that_its_cloud_ended_is_told_and_made_again(spot: Rehearsal) -> None:
    before = spot.ids()
    assert spot.plan("--preview")[1]["changes"] == []
    what = lose(spot, "spot-1")
    code, told = spot.plan("--preview")
    assert code == 0
    (change,) = told["changes"]
    assert (change["host"], change["what"]) == ("spot-1", what)
    assert change["why"][0] == {"create": "its cloud has ended it", "update": "desiredStatus"}[what]
    spot.stage.pulumi("up", "--refresh", *QUIET)
    after = spot.ids()
    assert sorted(after) == sorted(before)
    assert {name for name in before if before[name] != after[name]} == ({"spot-1"} if what == "create" else set())
    assert spot.stack()["spot-1"]["id"] == after["spot-1"] or what == "update"
    if what == "update":
        (record,) = [each for each in spot.hosts() if each.name == "spot-1"]
        assert record.outputs["desiredStatus"] == "RUNNING"
    assert spot.plan("--preview")[1]["changes"] == []
