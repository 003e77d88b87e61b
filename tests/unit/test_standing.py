"""What a fleet.yml may no longer change once hosts stand, with and without what older files of a stack lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_fleet.fleet import plan, standing
from vllm_fleet.schema.fleet import Stack

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHostKeyHostKeyHostKeyHostKeyHostKeyHostKeyH"
AWS = {"region": "us-east-1", "zones": ["us-east-1a", "us-east-1b"]}


def planned(folder: Path, placement: dict[str, Any], cloud: str = "aws", host_class: str = "h100-1") -> plan.Plan:
    fleet = {
        "fleet": "demo",
        "defaults": {"model": "openai/gpt-oss-20b"},
        "pools": {"main": {"host_class": host_class, "cloud": cloud, "hosts": 1, "placement": placement}},
        "gateway": {"hosts": 1, "plain": True},
        "access": {"ssh_from": ["203.0.113.0/24"]},
    }
    at = folder / "demo"
    at.mkdir(exist_ok=True)
    (at / "fleet.yml").write_text(yaml.safe_dump(fleet, sort_keys=False), encoding="utf-8")
    return plan.load(at)


def made(zone: str, network: str | None = None, networks: dict[str, str | None] | None = None) -> Stack:
    hosts = {
        name: {
            "address": f"10.60.0.{number}",
            "private_address": f"10.60.0.{number}",
            "id": "i",
            "user": "ubuntu",
            "ssh_host_key": KEY,
            "zone": zone,
            **({"network": network} if network else {}),
        }
        for number, name in enumerate(("main-0", "gateway-0"), 1)
    }
    found: dict[str, Any] = {"version": 1, "fleet": "demo", "hosts": hosts}
    return Stack.model_validate({**found, **({"networks": networks} if networks else {})})


NOW = ("us-east-1a", "aws us-east-1", {"aws us-east-1": "10.60.0.0/16"})


@pytest.mark.parametrize("stack", [made(*NOW), made("us-east-1a")], ids=["recorded", "an older file"])
@pytest.mark.parametrize("more", [{}, {"zones": ["us-east-1c", "us-east-1a"]}, {"network": "10.60.0.0/16"}])
def test_what_stays_is_no_error(tmp_path: Path, stack: Stack, more: dict[str, Any]) -> None:
    assert list(standing.moved_errors(planned(tmp_path, {**AWS, **more}), stack)) == []


@pytest.mark.parametrize("stack", [made(*NOW), made("us-east-1a")], ids=["recorded", "an older file"])
@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"network": "10.61.0.0/16"}, "network"),
        ({"zones": ["us-east-1b"]}, "zones"),
        ({"region": "us-west-2", "zones": ["us-west-2a"]}, None),
    ],
)
def test_what_no_host_can_follow_is_told_once_with_its_line(
    tmp_path: Path, stack: Stack, more: dict[str, Any], key: str | None
) -> None:
    errors = list(standing.moved_errors(planned(tmp_path, {**AWS, **more}), stack))
    assert len(errors) == 1, errors
    assert key is None or errors[0].key == f"pools.main.placement.{key}"
    assert errors[0].line
    assert errors[0].exit_code == 2
    assert "main-0" in errors[0].message


def test_a_smaller_range_is_another_network_although_the_host_is_in_it(tmp_path: Path) -> None:
    (error,) = standing.moved_errors(planned(tmp_path, {**AWS, "network": "10.60.0.0/17"}), made(*NOW))
    assert "is 10.60.0.0/17, but aws us-east-1 has 10.60.0.0/16" in error.message


def test_a_range_for_a_network_whose_range_the_cloud_chose(tmp_path: Path) -> None:
    place = {"region": "ric1", "network": "10.61.0.0/16"}
    stack = made("ric1", "digitalocean ric1", {"digitalocean ric1": None})
    found = planned(tmp_path, place, "digitalocean", "h100-1")
    (error,) = standing.moved_errors(found, stack)
    assert "has a range that the cloud chose" in error.message
    assert list(standing.moved_errors(planned(tmp_path, {"region": "ric1"}, "digitalocean"), stack)) == []


def test_a_host_that_is_new_may_be_anywhere(tmp_path: Path) -> None:
    stack = made(*NOW)
    empty = stack.model_copy(update={"hosts": {}})
    elsewhere = planned(tmp_path, {"region": "us-west-2", "zones": ["us-west-2a"], "network": "10.61.0.0/16"})
    assert list(standing.moved_errors(elsewhere, empty)) == []


def test_a_project_is_a_place_too(tmp_path: Path) -> None:
    place = {"region": "us-central1", "zone": "us-central1-b", "project": "new-project"}
    stack = made("us-central1-b", "gcp old-project us-central1", {"gcp old-project us-central1": "10.60.0.0/16"})
    (error,) = standing.moved_errors(planned(tmp_path, place, "gcp", "h100-8"), stack)
    assert error.key == "pools.main.placement.project"
    assert "is new-project, but main-0 stands in gcp old-project us-central1" in error.message


def company(vpc: str, **more: Any) -> dict[str, Any]:
    return {
        **AWS,
        "existing": {"vpc": vpc, "subnets": {zone: f"subnet-0000000{zone[-1]}" for zone in AWS["zones"]}, **more},
    }


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (
            "vpc-0000000a",
            company("vpc-0000000b"),
            "is vpc-0000000b, but aws us-east-1 has vpc-0000000a, and main-0 stands in it",
        ),
        (
            "10.60.0.0/16",
            company("vpc-0000000b"),
            "is vpc-0000000b, but aws us-east-1 has 10.60.0.0/16, and main-0 stands in it",
        ),
        ("vpc-0000000a", AWS, "is 10.60.0.0/16, but aws us-east-1 has vpc-0000000a, and main-0 stands in it"),
        ("vpc-0000000a", company("vpc-0000000a"), None),
        ("vpc-0000000a", company("vpc-0000000a", range="10.8.0.0/16"), None),
    ],
    ids=["another one", "one of the account", "one of the stack", "the same", "its range is said"],
)
def test_hosts_do_not_move_into_another_network_of_the_account(
    tmp_path: Path, before: str, now: dict[str, Any], words: str | None
) -> None:
    stack = made("us-east-1a", "aws us-east-1", {"aws us-east-1": before})
    found = [str(error) for error in standing.moved_errors(planned(tmp_path, now), stack)]
    assert (words is None) == (not found)
    assert all(str(words) in error for error in found), found
