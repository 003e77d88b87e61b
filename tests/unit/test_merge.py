from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_fleet.base.merge import leaves, merge

keys = st.sampled_from(["a", "b", "c", "d"])
values = st.recursive(
    st.integers() | st.booleans() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=3),
    max_leaves=8,
)
layers = st.dictionaries(keys, values | st.none(), max_size=4)
bases = st.dictionaries(keys, values, max_size=4)


@pytest.mark.parametrize(
    ("base", "layer", "result"),
    [
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": 1}, {"a": None}, {}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"a": {"x": 1, "y": 3}}),
        ({"a": {"x": 1}}, {"a": {"x": None}}, {}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": 1}, {"a": {"x": 1}}, {"a": {"x": 1}}),
        ({}, {"a": {"x": None}}, {}),
    ],
)
def test_merge(base: dict[str, Any], layer: dict[str, Any], result: dict[str, Any]) -> None:
    assert merge(base, layer) == result


@given(bases)
@settings(max_examples=50)
def test_nothing_on_top_changes_nothing(base: dict[str, Any]) -> None:
    assert merge(base, {}) == base


@given(bases, layers)
@settings(max_examples=50)
def test_twice_is_once(base: dict[str, Any], layer: dict[str, Any]) -> None:
    once = merge(base, layer)
    assert merge(once, layer) == once


@given(bases, layers)
@settings(max_examples=50)
def test_no_null_is_left_and_nothing_is_altered_in_place(base: dict[str, Any], layer: dict[str, Any]) -> None:
    before = repr((base, layer))
    result = merge(base, layer)
    assert all(value is not None for _, value in leaves(result))
    assert repr((base, layer)) == before


@given(bases, layers)
@settings(max_examples=50)
def test_every_value_of_the_layer_that_is_no_null_wins(base: dict[str, Any], layer: dict[str, Any]) -> None:
    result = dict(leaves(merge(base, layer)))
    for key, value in leaves(layer):
        if value is not None:
            assert result[key] == value
