"""What the program reads from the state of its stack before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cloud_fleets import write

from infra import guard
from infra.state import State, parse
from infra.zones import Zones
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet import replacement

INSTANCE, VOLUME = "aws:ec2/instance:Instance", "aws:ebs/volume:Volume"
FILE, PAIR = "pulumi-python:dynamic/fleet:TextFile", "pulumi-python:dynamic/fleet:SshKeyPair"
POOL = {"host_class": "h100-8", "placement": {"region": "us-east-1", "zone": "us-east-1a"}}


def row(kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"urn": f"urn:pulumi:demo::vllm-fleet::fleet:infra:Fleet${kind}::{name}", "type": kind, **more}


def test_hosts_that_live_with_their_protection_and_the_last_stack_json() -> None:
    text = json.dumps({"version": 1, "fleet": "demo", "hosts": {"main-0": {"address": "10.0.0.1"}}})
    found = parse(
        {
            "resources": [
                row(INSTANCE, "main-0", protect=True),
                row(INSTANCE, "main-1"),
                row(INSTANCE, "main-2", delete=True, protect=True),
                row(VOLUME, "main-0-models", protect=True),
                row(FILE, "demo-inventory", inputs={"text": text, "path": "demo/stack.json"}),
                row(FILE, "demo-api-key", inputs={"text": {"4dabf18193072939515e22adb298388d": "x"}}),
                row(PAIR, "demo-deploy-key"),
            ],
            "pending_operations": [
                {"type": "creating", "resource": row(INSTANCE, "main-5")},
                {"type": "creating", "resource": row(PAIR, "main-6-host-key")},
                {"type": "deleting", "resource": row(INSTANCE, "main-0")},
            ],
        },
        "demo",
    )
    assert found.protected == {"main-0": True, "main-1": False}
    assert found.record("main-0") == {"address": "10.0.0.1"}
    assert found.record("main-1") is None
    assert found.key_pairs == {"demo-deploy-key"}
    assert found.creating == {"main-5"}


def test_a_stack_without_resources_has_nothing() -> None:
    assert parse({}, "demo") == State()
    assert parse({"resources": None, "pending_operations": None}, "demo") == State()


def test_a_host_that_leaves_counts_until_it_is_gone() -> None:
    both = json.dumps({"hosts": {"main-0": {}, "main-1": {"id": "i-1"}}})
    found = parse({"resources": [row(FILE, "demo-inventory", inputs={"text": "{}", "meanwhile": both})]}, "demo")
    assert found.record("main-1") == {"id": "i-1"}


def test_a_creation_that_was_interrupted_in_another_checkout_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zones.json of the checkout that was killed is not here; the state is."""
    monkeypatch.setattr("pulumi.get_stack", lambda: "demo")
    host = write(tmp_path, "aws", POOL).host("main-1")
    zones = Zones(tmp_path / "demo", {"main-1"})
    zones.choose(host)
    with pytest.raises(FleetError, match="created main-1 in a zone that this checkout does not know: it may exist"):
        zones._before("main-1")


def test_a_host_that_another_checkout_made_exists_here_too(tmp_path: Path) -> None:
    """Hosts of a capacity block wait for its start, but for those that exist: zones.json of their maker is not here."""
    zones = Zones(tmp_path / "demo", living={"main-0"})
    assert zones.is_made("main-0")
    assert not zones.is_made("main-1")


def test_protected_hosts_that_leave_are_told_together_and_released_ones_go(tmp_path: Path) -> None:
    found = write(tmp_path, "aws", POOL)
    with pytest.raises(FleetError, match=r"old-0 and old-1 live and are not in fleet\.yml") as caught:
        guard.check(found, State(protected={"old-1": True, "main-0": True, "old-0": True, "gone-0": False}))
    assert "--replace-serving old-0,old-1" in caught.value.hint
    guard.check(found, State(protected={"main-0": True, "gone-0": False}))


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("main-0,main-1", "names main-0 and main-1, which would stop at the same time: both serve openai/gpt-oss-20b"),
        ("main-7", "names 'main-7', which is not a host of demo"),
        ("main-0,gateway-0", ""),
        ("old-0", ""),
        ("", ""),
    ],
)
def test_one_host_of_a_kind_at_a_time(tmp_path: Path, named: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(replacement.VARIABLE, named)
    found, before = write(tmp_path, "aws", POOL), State(protected={"old-0": False})
    if says:
        with pytest.raises(FleetError, match=says):
            guard.named_hosts(found, before)
    else:
        assert guard.named_hosts(found, before) == frozenset(filter(None, named.split(",")))


def test_a_fleet_that_serves_nobody_lets_all_go_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(replacement.VARIABLE, "main-0,main-1")
    found = write(tmp_path, "aws", POOL, protect=False)
    assert guard.named_hosts(found, State()) == {"main-0", "main-1"}
