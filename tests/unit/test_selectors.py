"""Typos in the selectors of rules and issues: each is an error with its key."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.reports import recipe_check
from vllm_fleet.schema.recipe import Rule, When

LARGE = "openai/gpt-oss-120b"
MISSPELT = [
    ({"at_least": {"gpu-memory-utilisation": 0.9}}, "when.at_least.gpu-memory-utilisation", "reads the flag"),
    ({"at_least": {"gpu_memory_utilization": 0.9}}, "when.at_least.gpu_memory_utilization", "reads the flag"),
    ({"at_least": {"kv-cache-dtype": 1}}, "when.at_least.kv-cache-dtype", "does not take a number"),
    ({"env_set": ["VLLM_ROCM_USE_AITER", "VLLM_NO_SUCH"]}, "when.env_set.1", "reads the variable 'VLLM_NO_SUCH'"),
    (
        {"engine": ">=0.32", "accelerator": "cuda", "env_set": ["VLLM_MXFP4_USE_MARLIN"]},
        "when.env_set.0",
        "reads the variable 'VLLM_MXFP4_USE_MARLIN'",
    ),
    ({"arch": ["sm_90", "sm_1000"]}, "when.arch.1", "there is no 'sm_1000'"),
    ({"host_class": ["h100", "h1000"]}, "when.host_class.1", "there is no 'h1000'"),
    ({"model": [LARGE, "openai/gpt-oss-12b"]}, "when.model.1", "there is no 'openai/gpt-oss-12b'"),
]
IDS = [key for _, key, _ in MISSPELT]


@pytest.mark.parametrize(("when", "key", "says"), MISSPELT, ids=IDS)
def test_a_typo_in_a_rule_is_an_error(catalog: Catalog, when: dict[str, Any], key: str, says: str) -> None:
    model = catalog.models[LARGE]
    wrong = Rule(when=When(**when), note="a note of a test", why="a rule of a test", source="test")
    changed = model.model_copy(update={"rules": [*model.rules, wrong]})
    mutated = dataclasses.replace(catalog, models={LARGE: changed})
    faults = [f for f in recipe_check.rule_errors(mutated, changed) if f.key == f"rules.{len(model.rules)}.{key}"]
    assert [says in fault.message for fault in faults] == [True]
    assert faults[0].file == "recipes/models/openai/gpt-oss-120b.yml"


@pytest.mark.parametrize(("when", "key", "says"), MISSPELT, ids=IDS)
def test_a_typo_in_an_issue_is_an_error(catalog: Catalog, when: dict[str, Any], key: str, says: str) -> None:
    first, *others = catalog.known_issues.issues
    issues = [first.model_copy(update={"when": When(**when)}), *others]
    mutated = dataclasses.replace(catalog, known_issues=catalog.known_issues.model_copy(update={"issues": issues}))
    faults = list(recipe_check.known_issue_errors(mutated))
    assert [(fault.key, says in fault.message) for fault in faults] == [(f"issues.0.{key}", True)]


def test_a_name_that_only_some_of_the_releases_read_is_none(catalog: Catalog) -> None:
    when = When(arch=["sm_100"], env_set=["VLLM_USE_FLASHINFER_MOE_MXFP4_BF16"])
    first, *others = catalog.known_issues.issues
    issues = [first.model_copy(update={"when": when}), *others]
    mutated = dataclasses.replace(catalog, known_issues=catalog.known_issues.model_copy(update={"issues": issues}))
    assert list(recipe_check.known_issue_errors(mutated)) == []
