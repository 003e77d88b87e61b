"""What the facts of a host choose: known, unknown, against an override, and on top of another rule's value."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from pydantic import ValidationError

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.reports import recipe_check
from vllm_fleet.resolve.resolve import Deployment, Question, choose, resolve
from vllm_fleet.schema.fleet import Overrides
from vllm_fleet.schema.known_issue import KnownIssue
from vllm_fleet.schema.recipe import FactCondition, Rule, When

LARGE = "openai/gpt-oss-120b"
RECLAIM = "HSA_NO_SCRATCH_RECLAIM"
OLD_FIRMWARE = When(arch=["gfx942", "gfx950"], engine=">=0.14", fact=FactCondition(mec_firmware_below=177))


def ask(catalog: Catalog, host_class: str = "mi300x-8", **layers: Any) -> Deployment:
    own = Overrides(why="a test wants it so", **layers) if layers else None
    return resolve(catalog, Question(host_class, LARGE, engine="vllm-0.14.1-rocm", overrides=own))


def with_rules(catalog: Catalog, *rules: Rule) -> Catalog:
    """The catalogue with more rules at the end of the large model."""
    model = catalog.models[LARGE]
    changed = model.model_copy(update={"rules": [*model.rules, *rules]})
    return dataclasses.replace(catalog, models={**catalog.models, LARGE: changed})


def rule(**changes: Any) -> Rule:
    return Rule(**{"when": OLD_FIRMWARE, "why": "a rule of a test", "source": "test", **changes})


@pytest.mark.parametrize("host_class", ["mi300x-8", "mi325x-8", "mi350x-8", "mi355x-8"])
def test_until_a_host_is_asked_the_safe_side_is_set_and_said(catalog: Catalog, host_class: str) -> None:
    deployment = ask(catalog, host_class)
    assert deployment.env[RECLAIM] == "1"
    (alternative,) = deployment.alternatives
    assert f"{RECLAIM}: set where the MEC firmware is below 177, or where that is unknown" in deployment.notes
    assert alternative.record() == {
        "unless": {"mec_firmware_below": 177},
        "args": {},
        "env": {RECLAIM: None},
        "provenance": {
            "file": "recipes/models/openai/gpt-oss-120b.yml",
            "rule": deployment.provenance[f"env.{RECLAIM}"].rule,
            "why": deployment.provenance[f"env.{RECLAIM}"].why,
        },
    }
    assert deployment.record()["alternatives"] == [alternative.record()]


@pytest.mark.parametrize(
    ("facts", "there", "left", "says"),
    [
        ({"mec_firmware": 176}, True, 0, None),
        ({"mec_firmware": 177}, False, 0, "left out"),
        ({"mec_firmware": 190, "vendor": "amd"}, False, 0, "left out"),
        ({"mec_firmware": None}, True, 1, "or where that is unknown"),
        ({}, True, 1, "or where that is unknown"),
        ({"mec_firmware": "176"}, True, 1, "or where that is unknown"),
        ({"mec_firmware": True}, True, 1, "or where that is unknown"),
    ],
    ids=["old", "just new enough", "new", "unknown", "no fact", "text is no fact", "nor is true"],
)
def test_a_fact_chooses(catalog: Catalog, facts: dict[str, Any], there: bool, left: int, says: str | None) -> None:
    resolved = ask(catalog)
    chosen = choose(resolved, facts)
    assert (RECLAIM in chosen.env) is there
    assert (f"env.{RECLAIM}" in chosen.provenance) is there
    assert len(chosen.alternatives) == left
    said = [note for note in chosen.notes if RECLAIM in note]
    assert [says in note for note in said] == [True] if says else said == []
    assert resolved.env[RECLAIM] == "1"


def test_nothing_else_changes(catalog: Catalog) -> None:
    resolved = ask(catalog)
    chosen = choose(resolved, {"mec_firmware": 200})
    assert chosen.args == resolved.args
    assert {**chosen.env, RECLAIM: "1"} == resolved.env
    assert (chosen.fit, chosen.instances, chosen.engine) == (resolved.fit, resolved.instances, resolved.engine)
    assert choose(chosen, {"mec_firmware": 100}) == chosen


@pytest.mark.parametrize(("value", "there"), [(None, False), ("0", True)], ids=["taken away", "another value"])
def test_an_override_leaves_nothing_to_choose(catalog: Catalog, value: str | None, there: bool) -> None:
    deployment = ask(catalog, env={RECLAIM: value})
    assert deployment.alternatives == ()
    assert (deployment.env.get(RECLAIM) == value) is True
    assert (RECLAIM in deployment.env) is there
    assert choose(deployment, {"mec_firmware": 1}) == choose(deployment, {"mec_firmware": 999}) == deployment


@pytest.mark.parametrize("host_class", ["b200-8", "h100-8"])
def test_a_host_of_another_vendor_has_nothing_to_choose(catalog: Catalog, host_class: str) -> None:
    deployment = resolve(catalog, Question(host_class, LARGE))
    assert deployment.alternatives == ()
    assert choose(deployment, {"mec_firmware": 1}) == deployment


def test_what_stood_below_comes_back_with_its_origin(catalog: Catalog) -> None:
    mutated = with_rules(
        catalog,
        rule(args={"block-size": 16, "compilation-config": {"cudagraph_mode": "FULL", "cache_dir": "/x"}}),
    )
    resolved = resolve(mutated, Question("mi300x-8", LARGE, engine="vllm-0.14.1-rocm"))
    assert (resolved.args["block-size"], resolved.args["compilation-config"]["cache_dir"]) == (16, "/x")
    chosen = choose(resolved, {"mec_firmware": 180})
    plain = ask(catalog)
    assert chosen.args == plain.args
    assert {key: origin for key, origin in plain.provenance.items() if not key.endswith(RECLAIM)} == chosen.provenance


def test_what_stands_below_is_proven_too(catalog: Catalog) -> None:
    below = rule(when=When(engine=">=0.14", accelerator="rocm"), args={"block-size": 17})
    with pytest.raises(FleetError, match="does not take 17 for 'block-size'"):
        ask(with_rules(catalog, below, rule(args={"block-size": 16})))


def test_a_rule_that_takes_away_is_an_alternative_too(catalog: Catalog) -> None:
    resolved = ask(with_rules(catalog, rule(args={"block-size": None})))
    assert "block-size" not in resolved.args
    assert choose(resolved, {"mec_firmware": 180}).args["block-size"] == 64


@pytest.mark.parametrize(
    "changes",
    [
        {"note": "a note of its own"},
        {"refuse": "refused by a test", "note": None},
        {"args": {"max-model-len": 1024}},
        {"args": {"tensor-parallel-size": 2}},
        {"env": {"VLLM_CPU_KVCACHE_SPACE": "1"}},
        {"args": {"block-size": 16}, "note": "a note of its own"},
    ],
    ids=["only a note", "a refusal", "the length", "the size", "the cache", "a note of its own"],
)
def test_what_a_fact_may_not_choose(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        rule(**changes)


@pytest.mark.parametrize("fact", [{}, {"mec_firmware_below": 0}, {"mec_firmware_below": "177"}, {"glibc_below": 2}])
def test_a_condition_that_is_none(fact: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FactCondition.model_validate(fact)


def test_a_known_issue_cannot_look_at_a_host() -> None:
    with pytest.raises(ValidationError, match="cannot select by the facts of a host"):
        KnownIssue(id="broken", cause="a cause of a test", fix="a fix of a test", source="test", when=OLD_FIRMWARE)


def test_the_recipes_with_another_alternative_are_right(catalog: Catalog) -> None:
    assert [*recipe_check.recipe_errors(with_rules(catalog, rule(args={"block-size": 16})))] == []
