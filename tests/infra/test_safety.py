"""What a production stack will not let go, and what it never does by itself, by the options of its resources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pulumi
import pytest
from cloud_fleets import built, write
from pulumi.runtime import mocks
from recording import Recorder
from test_policy import FUNCTIONS, POOLS

from infra.fleet import REPLACE_VARIABLE
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet.replacement import host_of

#: The offering that 'accept_cost_usd' speaks of.
OFFERING = "aws:ec2/getCapacityBlockOffering:getCapacityBlockOffering"


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> dict[tuple[str, str], Any]:
    """(type, name) -> the request of each resource, with its options, which the SDK's mocks leave out."""
    found: dict[tuple[str, str], Any] = {}
    register = mocks.MockMonitor.RegisterResource

    def keep(self: Any, request: Any) -> Any:
        found[request.type, request.name] = request
        return register(self, request)

    monkeypatch.setattr(mocks.MockMonitor, "RegisterResource", keep)
    recorder.functions.update(FUNCTIONS)
    return found


def protected(options: dict[tuple[str, str], Any]) -> set[str]:
    return {name for (_, name), request in options.items() if request.protect}


def hosts_and_disks(options: dict[tuple[str, str], Any]) -> set[str]:
    """Every resource that is a host or holds its models."""
    return {name for kind, name in options if host_of(f"urn:pulumi:s::p::{kind}::{name}")}


def run(found: Any) -> None:
    pulumi.runtime.test(lambda: built(found, lambda _: None))()


@pytest.mark.parametrize("cloud", sorted(POOLS))
def test_hosts_and_model_volumes_are_protected(cloud: str, tmp_path: Path, options: dict[tuple[str, str], Any]) -> None:
    run(write(tmp_path, cloud, POOLS[cloud]))
    kept = hosts_and_disks(options)
    disks = {"main-0-models", "main-1-models"} if cloud in ("aws", "gcp") else set()
    assert kept == {"main-0", "main-1", "gateway-0"} | disks
    assert kept <= protected(options)


@pytest.mark.parametrize("cloud", sorted(POOLS))
def test_a_run_lets_go_just_the_hosts_that_it_names(
    cloud: str, tmp_path: Path, options: dict[tuple[str, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REPLACE_VARIABLE, "main-1")
    run(write(tmp_path, cloud, POOLS[cloud]))
    assert hosts_and_disks(options) - protected(options) <= {"main-1", "main-1-models"}
    assert "main-1" not in protected(options)


def test_a_fleet_may_protect_nothing(tmp_path: Path, options: dict[tuple[str, str], Any]) -> None:
    run(write(tmp_path, "aws", POOLS["aws"], protect=False))
    assert not protected(options)


def test_a_name_that_is_no_host_is_refused_before_anything_is_made(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REPLACE_VARIABLE, "main-1,main-7")
    recorder.functions.update(FUNCTIONS)
    with pytest.raises(FleetError, match="names 'main-7', which is not a host of demo"):
        run(write(tmp_path, "aws", POOLS["aws"]))
    assert not recorder.of("Instance")


def test_what_was_bought_stays_bought(tmp_path: Path, options: dict[tuple[str, str], Any], recorder: Recorder) -> None:
    recorder.functions[OFFERING] = {"capacityBlockOfferingId": "cb-1", "upfrontFee": "900"}
    order = {"offering_id": "cb-1", "duration_hours": 48, "accept_cost_usd": 1000.0}
    placement = {"region": "us-east-1", "zone": "us-east-1a", "capacity": {"kind": "capacity-block", "purchase": order}}
    run(write(tmp_path, "aws", {"host_class": "h100-8", "placement": placement}, protect=False))
    block = next(request for (kind, _), request in options.items() if kind.endswith("CapacityBlockReservation"))
    # It leaves the state once it is written down, and lives on.
    assert (block.protect, block.retainOnDelete) == (False, True)
    assert list(block.ignoreChanges) == ["capacityBlockOfferingId"]


def test_nothing_is_bought_without_an_order(tmp_path: Path, options: dict[tuple[str, str], Any]) -> None:
    placement = {"region": "us-east-1", "zone": "us-east-1a", "capacity": {"kind": "capacity-block", "id": "cr-1"}}
    run(write(tmp_path, "aws", {"host_class": "b200-8", "placement": placement}))
    assert not [kind for kind, _ in options if "Reservation" in kind]


@pytest.mark.parametrize("joined", [True, False])
def test_routes_to_joined_networks_are_left_to_their_owner(
    joined: bool, tmp_path: Path, options: dict[tuple[str, str], Any]
) -> None:
    """Oracle's tables hold all of their routes; elsewhere routes stand beside the tables, or there are none."""
    access = {"ssh_from": ["203.0.113.0/24"], "joined_networks": joined}
    run(write(tmp_path, "oci", POOLS["oci"], access=access))
    tables = [request for (kind, _), request in options.items() if kind.endswith(":RouteTable")]
    assert len(tables) == 2
    for each in tables:
        assert list(each.ignoreChanges) == (["routeRules"] if joined else [])


def test_private_keys_and_api_keys_are_secret_outputs(tmp_path: Path, options: dict[tuple[str, str], Any]) -> None:
    run(write(tmp_path, "aws", POOLS["aws"]))
    keys = {"SshKeyPair": ["private_key"], "ApiKey": ["key"]}
    for (kind, name), request in options.items():
        if wanted := keys.get(kind.rsplit(":", 1)[-1]):
            assert list(request.additionalSecretOutputs) == wanted, name
