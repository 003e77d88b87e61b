"""Which zone a host is made in, try after try."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.zones import Zones

ZONES = ("a", "b", "c")


@pytest.mark.parametrize(
    ("tried", "zone"),
    [
        ({}, "a"),
        ({"h-0": {"zone": "a", "made": True}}, "a"),
        ({"h-0": {"zone": "b", "made": True}}, "b"),
        ({"h-0": {"zone": "a", "made": False}}, "b"),
        ({"h-0": {"zone": "c", "made": False}}, "a"),
        ({"h-0": {"zone": "gone", "made": False}}, "a"),
        ({"h-1": {"zone": "b", "made": False}}, "a"),
    ],
)
def test_the_zone_of_a_host(tried: dict[str, object], zone: str, tmp_path: Path) -> None:
    (tmp_path / "zones.json").write_text(json.dumps(tried), encoding="utf-8")
    assert Zones(tmp_path).choose("h-0", ZONES) == zone
