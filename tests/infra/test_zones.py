"""Which zone a host is made in, try after try."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pulumi
import pytest

from infra.zones import Zones

ZONES = ("a", "b", "c")


class Hook:
    """In the place of Pulumi's, which sets out to register itself with an engine as it is made."""

    def __init__(self, name: str, callback: Any) -> None:
        self.name, self.callback = name, callback


def test_the_hosts_of_a_fleet_share_their_hooks_which_note_each_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulumi, "ResourceHook", Hook)
    monkeypatch.setattr(pulumi, "ErrorHook", Hook)
    monkeypatch.setattr(pulumi, "ResourceHookBinding", SimpleNamespace)
    zones = Zones(tmp_path)
    bindings = [zones.hooks(host, zone) for host, zone in (("h-0", "a"), ("h-1", "b"))]
    assert bindings[0] is bindings[1]
    (before,), (after,) = bindings[0].before_create, bindings[0].after_create
    assert (before.name, after.name) == ("zone-tried", "zone-taken")
    for hook, host in ((before, "h-0"), (before, "h-1"), (after, "h-1")):
        hook.callback(pulumi.ResourceHookArgs(urn="", id="", name=host, type=""))
    noted = json.loads((tmp_path / "zones.json").read_text(encoding="utf-8"))
    assert noted == {
        "h-0": {"zone": "a", "made": False, "answered": False},
        "h-1": {"zone": "b", "made": True, "answered": True},
    }
    assert Zones(tmp_path).choose("h-0", ZONES) == "b"


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
