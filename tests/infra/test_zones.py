"""Which zone a host is made in, try after try."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pulumi
import pytest
from cloud_fleets import write

from infra.tries import TriesFile, read_tries
from infra.zones import Zones
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet.host_plan import HostPlan

A, B, C = "us-east-1a", "us-east-1b", "us-east-1c"
FULL = "InsufficientInstanceCapacity: We currently do not have sufficient p5.48xlarge capacity"


class Hook:
    """In the place of Pulumi's, which sets out to register itself with an engine as it is made."""

    def __init__(self, name: str, callback: Any) -> None:
        self.name, self.callback = name, callback


@pytest.fixture
def hosts(tmp_path: Path) -> dict[str, HostPlan]:
    pool = {"host_class": "h100-8", "hosts": 4, "placement": {"region": "us-east-1", "zones": [A, B, C]}}
    return {host.name: host for host in write(tmp_path, "aws", pool).hosts}


class Run:
    """One run of the program: its zones, and the answers of the cloud."""

    def __init__(self, folder: Path, hosts: dict[str, HostPlan]) -> None:
        self.zones = Zones(folder)
        self.chosen = {name: self.zones.choose(host) for name, host in hosts.items()}
        bindings = [self.zones.hooks(host, self.chosen[name]) for name, host in hosts.items()]
        assert len({id(each) for each in bindings}) == 1, "hosts share their hooks"
        (self._before,), (self._after,), (self._error,) = (
            getattr(bindings[0], when) for when in ("before_create", "after_create", "on_error")
        )

    def tried(self, host: str) -> None:
        self._before.callback(pulumi.ResourceHookArgs(urn="", id="", name=host, type=""))

    def made(self, host: str) -> None:
        self.tried(host)
        self._after.callback(pulumi.ResourceHookArgs(urn="", id="", name=host, type=""))

    def refused(self, host: str, says: str = FULL) -> None:
        self.tried(host)
        args = SimpleNamespace(name=host, failed_operation="create", errors=[says])
        assert self._error.callback(args) is False, "the engine need not try again"


@pytest.fixture(autouse=True)
def hooks_without_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulumi, "ResourceHook", Hook)
    monkeypatch.setattr(pulumi, "ErrorHook", Hook)
    monkeypatch.setattr(pulumi, "ResourceHookBinding", SimpleNamespace)
    monkeypatch.setattr(pulumi, "get_stack", lambda: "demo")


def test_each_try_is_noted_before_and_after_the_cloud_is_asked(tmp_path: Path, hosts: dict[str, HostPlan]) -> None:
    run = Run(tmp_path, hosts)
    run.tried("main-0")
    run.made("main-1")
    run.refused("main-3", "InternalError")
    run.refused("main-2")
    row = {"zone": A, "pool": "main", "run": 1}
    assert read_tries(tmp_path) == {
        "main-0": {**row, "made": False, "answered": False},
        "main-1": {**row, "made": True, "answered": True},
        "main-2": {**row, "made": False, "answered": True, "full": True},
        "main-3": {**row, "made": False, "answered": True},
    }
    with pytest.raises(FleetError, match="the last run was interrupted while it created main-0 in us-east-1a: it may"):
        Run(tmp_path, hosts).tried("main-0")
    two = tmp_path / "two"
    two.mkdir()
    interrupted = Run(two, hosts)
    interrupted.tried("main-0")
    interrupted.tried("main-1")
    again = Run(two, hosts)
    again.tried("main-2")
    with pytest.raises(FleetError, match="while it created main-0 in us-east-1a and main-1 in us-east-1a: they may "):
        again.tried("main-1")


@pytest.mark.parametrize(
    ("tried", "zone"),
    [
        ({}, A),
        ({"main-0": {"zone": A, "made": True}}, A),
        ({"main-0": {"zone": B, "made": True}}, B),
        ({"main-0": {"zone": A, "made": False}}, B),
        ({"main-0": {"zone": C, "made": False}}, A),
        ({"main-0": {"zone": "gone", "made": False}}, A),
        ({"main-1": {"zone": B, "made": False}}, A),
        ({"main-1": {"zone": B, "made": True, "pool": "other", "run": 1}}, A),
    ],
)
def test_the_zone_of_a_host(tried: dict[str, Any], zone: str, tmp_path: Path, hosts: dict[str, HostPlan]) -> None:
    (tmp_path / "zones.json").write_text(json.dumps(tried), encoding="utf-8")
    assert Zones(tmp_path).choose(hosts["main-0"]) == zone


def test_a_host_that_was_never_tried_begins_where_the_last_of_its_pool_was_made(
    tmp_path: Path, hosts: dict[str, HostPlan]
) -> None:
    first = Run(tmp_path, hosts)
    first.made("main-0")
    first.refused("main-1")
    second = Run(tmp_path, hosts)
    assert second.chosen == {"main-0": A, "main-1": B, "main-2": B, "main-3": B, "gateway-0": A}
    second.made("main-1")
    third = Run(tmp_path, hosts)
    assert third.chosen == {"main-0": A, "main-1": B, "main-2": B, "main-3": B, "gateway-0": A}


def test_a_zone_without_capacity_in_the_last_run_is_tried_last_and_is_not_held_against_it_for_ever(
    tmp_path: Path, hosts: dict[str, HostPlan]
) -> None:
    first = Run(tmp_path, hosts)
    first.made("main-0")
    first.refused("main-1")
    second = Run(tmp_path, hosts)
    second.refused("main-1")
    # B is full too; A answered so one run before, and it had room for main-0 then.
    third = Run(tmp_path, hosts)
    assert (third.chosen["main-1"], third.chosen["main-2"]) == (C, A)
    third.refused("main-1")
    third.refused("main-2")
    with pytest.raises(FleetError):
        third.tried("main-3")
    # C and A are full: only B is not.
    assert {Run(tmp_path, hosts).chosen[name] for name in ("main-1", "main-2", "main-3")} == {B}


def test_another_error_says_nothing_about_the_zone_of_other_hosts(tmp_path: Path, hosts: dict[str, HostPlan]) -> None:
    Run(tmp_path, hosts).refused("main-1", "InternalError: try again")
    assert Run(tmp_path, hosts).chosen == {"main-0": A, "main-1": B, "main-2": A, "main-3": A, "gateway-0": A}


def test_a_zone_that_is_full_is_not_asked_again_in_the_same_run(tmp_path: Path, hosts: dict[str, HostPlan]) -> None:
    run = Run(tmp_path, hosts)
    run.refused("main-1")
    with pytest.raises(FleetError, match=f"{A} had no capacity for main-1 in this run: main-2 was not"):
        run.tried("main-2")
    run.made("gateway-0")  # of another pool, with another instance type
    after = Run(tmp_path, hosts).chosen
    assert (after["main-1"], after["main-2"], after["main-3"]) == (B, B, B)


def test_the_file_of_tries_has_the_form_that_json_gives_it(tmp_path: Path) -> None:
    tries = {"b": {"zone": "z-1", "made": True, "run": 2}, "a": {"zone": "z-2", "made": False, "pool": 'x"y'}}
    file = TriesFile(tmp_path, tries)
    file.note("c", {"made": False, "zone": "z"})
    wanted = {**tries, "c": {"made": False, "zone": "z"}}
    assert (tmp_path / "zones.json").read_text() == json.dumps(wanted, indent=2, sort_keys=True) + "\n"
    TriesFile(tmp_path, {}).write()
    assert (tmp_path / "zones.json").read_text() == "{}\n"


def test_a_limit_of_the_account_names_what_to_raise_and_moves_no_host(
    tmp_path: Path, hosts: dict[str, HostPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(pulumi, "warn", said.append)
    run = Run(tmp_path, hosts)
    run.refused("main-0", "api error VcpuLimitExceeded: You have requested more vCPU capacity than your current limit")
    (words,) = said
    assert "main-0: a limit of the account is reached, not the capacity of us-east-1a" in words
    assert "Running On-Demand P instances" in words
    # Another host is requested in the same zone in this run, and the same host in the next one.
    run.made("main-1")
    assert Run(tmp_path, hosts).chosen["main-0"] == A
    run.refused("main-2", "api error UnauthorizedOperation: You are not authorized to perform this operation.")
    assert len(said) == 1
