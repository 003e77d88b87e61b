"""The layers of a deployment: every value that is left has the origin of the last layer that set it."""

from __future__ import annotations

from functools import reduce
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vllm_fleet.base.merge import leaves, merge
from vllm_fleet.catalogue.spellings import Spelled
from vllm_fleet.resolve.provenance import Origin
from vllm_fleet.resolve.rule_layers import Layer, stack
from vllm_fleet.schema.spelling import Spelling

keys = st.sampled_from(["a", "b"])
plain_values = st.none() | st.integers(0, 1)
mappings = st.dictionaries(keys, plain_values | st.dictionaries(keys, plain_values))
args = st.dictionaries(keys, plain_values | mappings)
env = st.dictionaries(st.sampled_from(["X", "Y"]), st.none() | st.sampled_from(["0", "1"]), max_size=2)
stacks = st.lists(st.tuples(args, env), min_size=2, max_size=4)
# Slow is no fault: the machines that run this do other work too.
few = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def layered(drawn: list[tuple[Any, Any]]) -> list[Layer]:
    return [
        Layer(args, env, Origin("rules.yml", number, "a rule of a test", "test"))
        for number, (args, env) in enumerate(drawn, start=1)
    ]


def renamed(name: str, to: str | None) -> dict[str, Spelled]:
    entry = Spelling(name=name, to=to, engine=">=0", why="an entry of a test", source="test")
    return {name: Spelled(1, entry, tuple(name.split(".")))}


@given(stacks)
@few
def test_the_values_are_those_of_the_one_merge_rule(drawn: list[tuple[Any, Any]]) -> None:
    found = stack(layered(drawn), {})
    assert found.args == reduce(merge, (args for args, _ in drawn), {})
    assert found.env == reduce(merge, (env for _, env in drawn), {})


@given(stacks)
@example([({"a": 5}, {}), ({"a": {"b": 1}}, {})])
@example([({"a": 5}, {}), ({"a": {"b": None}}, {})])
@example([({"a": {"b": 1}}, {}), ({"a": {}}, {})])
@example([({"a": {"b": 1}}, {}), ({"a": 5}, {})])
@few
def test_every_value_has_its_origin_and_nothing_else_has_one(drawn: list[tuple[Any, Any]]) -> None:
    found = stack(layered(drawn), {})
    left = dict(leaves({"args": found.args, "env": found.env}))
    assert set(found.provenance) == set(left) - {"args", "env"}
    for name, origin in found.provenance.items():
        assert origin.rule is not None
        own_args, own_env = drawn[origin.rule - 1]
        assert dict(leaves({"args": own_args, "env": own_env}))[name] == left[name]
        for later_args, later_env in drawn[origin.rule :]:
            assert dict(leaves({"args": later_args, "env": later_env})).get(name, {}) == {}


@given(stacks)
@few
def test_a_renamed_name_stands_nowhere_any_more(drawn: list[tuple[Any, Any]]) -> None:
    found = stack(layered(drawn), renamed("env.X", "env.Z"))
    plain = stack(layered(drawn), {})
    assert {("Z" if name == "X" else name): value for name, value in plain.env.items()} == found.env
    assert ("env.Z" in found.provenance) is ("X" in plain.env)
    assert len(found.notes("engine")) == ("X" in plain.env)


@given(stacks)
@few
def test_a_dropped_name_is_told_while_a_layer_still_wants_it(drawn: list[tuple[Any, Any]]) -> None:
    found = stack(layered(drawn), renamed("env.X", None))
    plain = stack(layered(drawn), {})
    assert "X" not in found.env
    assert set(found.dropped) == ({"env.X"} if "X" in plain.env else set())
    assert found.args == plain.args
