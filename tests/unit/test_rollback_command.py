"""Which hosts a rollback is about, what it asks of them, and in which batches they go."""

from __future__ import annotations

import pytest
from stand_in_gates import QUESTIONS

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.cli import rollback as command
from vllm_fleet.facts.rollout_answer import Status
from vllm_fleet.fleet.batches import Member, plan_batches
from vllm_fleet.inventory import Site
from vllm_fleet.operate import drift
from vllm_fleet.operate.rollout import order, rollback
from vllm_fleet.operate.rollout.hosts import RolloutHost
from vllm_fleet.schema.rollout import Rollout

STATUS = {
    "accepted": "b" * 16,
    "trial": None,
    "previous": "a" * 16,
    "previous_instances": [
        {"name": "0", "unit": "vllm@0.service", "runtime_directory": "/run/vllm-0", "loaded": "x", "files": []}
    ],
    "states": {"vllm@0.service": "active"},
}


def test_a_host_gets_the_release_before_and_only_proves_that_it_serves() -> None:
    gates = {**QUESTIONS, "reference": "/references/x.json", "waived": {}}
    host = RolloutHost("a", "b" * 16, {"0.yaml": "x"}, (), (), {}, promises=({"line": "x"},), gates=gates)
    found = rollback.host_before(host, Status.model_validate(STATUS))
    assert (found.release, found.files, found.canary, found.promises) == ("a" * 16, {}, False, ())
    assert [each["unit"] for each in found.instances] == ["vllm@0.service"]
    assert found.gates["asked"] == ["completion", "stream"]
    assert "reference" not in found.gates


def test_as_many_go_at_once_as_a_model_can_spare_and_none_goes_first_alone() -> None:
    members = [Member(f"h{number}", "line", "m", True, False) for number in range(8)]
    steps = plan_batches(members, rollback.replace_batches(Rollout()), canaries=False)
    assert [len(step.hosts) for step in steps] == [2, 2, 2, 2]
    assert {step.canaries for step in steps} == {()}


@pytest.fixture(scope="module")
def site() -> Site:
    return drift.load_site_of_run(paths.root() / "tests" / "fixtures" / "fleets" / "golden")


def names(site: Site, pools: list[str], hosts: list[str]) -> list[str]:
    return [member.plan.name for member in command.choose_hosts(site, pools, hosts)]


def test_hosts_are_chosen_by_pool_by_name_or_all(site: Site) -> None:
    every = names(site, [], [])
    assert every
    assert "gateway-0" not in every
    first = site.plan.host(every[0])
    assert names(site, [], [first.name]) == [first.name]
    assert first.name in names(site, [first.pool], [])
    members = order.members_to_go_back(site, {first.name})
    assert {member.name: member.changes for member in members} == {name: name == first.name for name in every}


@pytest.mark.parametrize(
    ("pools", "hosts", "says"),
    [
        ([], ["nowhere"], "nowhere"),
        (["nowhere"], [], "no pool 'nowhere' serves"),
        ([], ["gateway-0"], "serves no model"),
    ],
)
def test_what_has_no_release_is_refused(site: Site, pools: list[str], hosts: list[str], says: str) -> None:
    with pytest.raises(FleetError, match=says) as fault:
        command.choose_hosts(site, pools, hosts)
    assert fault.value.exit_code == 2
