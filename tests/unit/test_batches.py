"""The order of a rollout: canaries, steps, capacity, and where a stopped one continues."""

from __future__ import annotations

import pytest

from vllm_fleet.fleet.batches import Member, Step, plan_batches
from vllm_fleet.schema.rollout import Rollout, hosts_of


def hosts(count: int, line: str = "a", model: str = "m", done: int = 0, idle: int = 0) -> list[Member]:
    """Hosts of a line: the first ``done`` are as planned, the last ``idle`` serve nothing."""
    return [
        Member(f"{line}-{number}", line, model, changes=number >= done, idle=number >= count - idle)
        for number in range(count)
    ]


def sizes(members: list[Member], **rollout: object) -> list[int]:
    batches = plan_batches(members, Rollout.model_validate(rollout))
    names = [name for batch in batches for name in batch.hosts]
    assert sorted(names) == sorted(member.name for member in members if member.changes), "each host once"
    return [len(batch.hosts) for batch in batches]


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (0, []),
        (1, [1]),
        (2, [1, 1]),
        (4, [1, 1, 1, 1]),
        (8, [1, 2, 1, 2, 2]),
        (20, [1, 3, 5, 5, 5, 1]),
        (100, [1, 3, 25, 25, 25, 21]),
    ],
)
def test_steps_never_take_more_than_the_model_can_spare(total: int, expected: list[int]) -> None:
    assert sizes(hosts(total)) == expected


def test_hosts_that_serve_nothing_come_side_by_side_after_one_canary() -> None:
    assert sizes(hosts(100, idle=100)) == [1, 99]
    assert sizes(hosts(1, idle=1)) == [1]


def test_a_canary_that_serves_nothing_goes_first() -> None:
    assert plan_batches(hosts(3, idle=1), Rollout())[0] == Step(("a-2",), ("a-2",))


def test_pools_of_one_model_share_what_it_can_spare() -> None:
    """Two pools of four: never more than two of the eight, and never one whole pool."""
    members = [*hosts(4, "a"), *hosts(4, "b")]
    batches = plan_batches(members, Rollout())
    assert all(len(batch.hosts) <= 2 for batch in batches)
    assert {name[0] for name in batches[0].canaries} == {"a", "b"}, "each line has its own canary"


def test_pools_of_different_models_go_side_by_side() -> None:
    members = [*hosts(4, "a", "m"), *hosts(4, "b", "n")]
    assert [len(batch.hosts) for batch in plan_batches(members, Rollout())] == [2, 2, 2, 2]


def test_a_rollout_that_was_stopped_continues_without_another_canary() -> None:
    assert sizes(hosts(100, done=1)) == [3, 25, 25, 25, 21]
    assert sizes(hosts(100, done=4)) == [25, 25, 25, 21]
    assert sizes(hosts(100, done=30)) == [25, 25, 20]
    assert sizes(hosts(100, done=99)) == [1]


def test_a_host_that_was_not_probed_is_no_proof() -> None:
    unknown = [Member(f"a-{number}", "a", "m", None, idle=False) for number in range(4)]
    changing = [Member(f"a-{number}", "a", "m", True, idle=False) for number in range(4, 8)]
    assert sizes([*unknown, *changing]) == [1, 2, 1]


def test_a_line_has_one_canary_and_none_where_a_host_has_the_release() -> None:
    assert [batch.canaries for batch in plan_batches(hosts(3), Rollout())] == [("a-0",), (), ()]
    assert [batch.canaries for batch in plan_batches(hosts(3, done=1), Rollout())] == [(), ()]


def test_the_fleet_says_the_steps() -> None:
    assert sizes(hosts(10), batches=[2, "50%"], max_unavailable="100%") == [1, 1, 5, 3]
    assert sizes(hosts(10), batches=["100%"], max_unavailable="100%") == [1, 9]
    assert sizes(hosts(10), batches=[1], max_unavailable=1) == [1] * 10


def test_a_line_that_another_starves_waits_and_ends() -> None:
    members = [*hosts(2, "a"), *hosts(1, "b")]
    assert [batch.hosts for batch in plan_batches(members, Rollout())] == [("a-0",), ("a-1",), ("b-0",)]


@pytest.mark.parametrize(("size", "total", "expected"), [("25%", 100, 25), ("25%", 3, 1), (3, 2, 3), ("100%", 7, 7)])
def test_a_share_is_at_least_one_host(size: int | str, total: int, expected: int) -> None:
    assert hosts_of(size, total) == expected


@pytest.mark.parametrize("size", [0, -1, "0%", "101%", "25", "a%", ""])
def test_what_is_no_size_is_refused(size: int | str) -> None:
    with pytest.raises(ValueError, match=r"batch"):
        Rollout.model_validate({"batches": [size]})
