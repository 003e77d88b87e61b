"""What upgrade-check must tell: one id for each claim."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.reports import upgrade
from vllm_fleet.reports.recipe_check import FEATURES
from vllm_fleet.reports.upgrade import Case, Change, Effect, Report
from vllm_fleet.resolve.resolve import Question
from vllm_fleet.schema.fleet import Overrides

LARGE, SMALL = "openai/gpt-oss-120b", "openai/gpt-oss-20b"
RULES = "recipes/models/openai/gpt-oss-120b.yml"
OLD, NEW = "vllm-0.12.0-cuda", "vllm-0.32.0-cuda"


def everything(catalog: Catalog, before: str, after: str) -> Report:
    old, new = upgrade.engines(catalog, before, after)
    return upgrade.compare(catalog, old, new, upgrade.catalogue_cases(catalog, old, new, FEATURES))


def one(catalog: Catalog, before: str, after: str, host_class: str, **more: Any) -> Report:
    old, new = upgrade.engines(catalog, before, after)
    asked = Question(host_class, more.pop("model", LARGE), **more)
    return upgrade.compare(catalog, old, new, [Case("pool", asked, asked.features)])


def overridden(**layers: Any) -> Overrides:
    return Overrides(why="a test wants it so", **layers)


@pytest.fixture(scope="module")
def report(catalog: Catalog) -> Report:
    return everything(catalog, OLD, NEW)


def effect(report: Report, model: str, case: str) -> Effect:
    (found,) = [each for each in report.effects if each.model == model and case in each.cases]
    return found


@pytest.mark.parametrize(
    "name",
    [
        "VLLM_MXFP4_USE_MARLIN",
        "VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8",
        "VLLM_USE_FLASHINFER_MOE_MXFP4_BF16",
        "VLLM_ATTENTION_BACKEND",
    ],
)
def test_the_guides_variable_is_no_longer_read(report: Report, catalog: Catalog, name: str) -> None:
    (gone,) = [each for each in report.gone if each.name == name]
    assert (gone.kind, gone.why) == ("environment variable", f"{NEW}: no longer read")
    rules = {f"{file}, rule {number}": rule for file, number, rule in catalog.rules(catalog.model(LARGE))}
    assert gone.used_by
    assert all(name in {*rules[place].env, *(rules[place].when.env_set or ())} for place in gone.used_by)


def test_a_note_tells_what_stands_in_its_place(report: Report) -> None:
    told = {gone.name: gone.notes for gone in report.gone}
    assert "quantization-config asks for the same mxfp8" in told["VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8"][0]
    assert told["VLLM_MXFP4_USE_MARLIN"] == ()


@pytest.mark.parametrize(
    ("before", "after", "kind", "name", "why"),
    [
        ("vllm-0.10.2-cuda", NEW, "flag", "cuda-graph-sizes", "no such flag"),
        (
            "vllm-0.10.2-cuda",
            OLD,
            "environment variable",
            "VLLM_FLASHINFER_ALLREDUCE_FUSION_THRESHOLDS_MB",
            "declared, and used by nothing",
        ),
        (
            "vllm-0.10.2-cuda",
            NEW,
            "key",
            "compilation-config.pass_config.enable_fi_allreduce_fusion",
            "no such key of pass_config",
        ),
        ("rocm-open-mi300", "vllm-0.14.1-rocm", "key", "compilation-config.full_cuda_graph", "no such key of "),
        (NEW, OLD, "flag", "shutdown-timeout", "no such flag"),
        (NEW, OLD, "flag", "moe-backend", "no such flag"),
    ],
    ids=["flag", "unused variable", "pass_config key", "nested key", "on the way back", "on the way back, a choice"],
)
def test_a_name_is_gone(catalog: Catalog, before: str, after: str, kind: str, name: str, why: str) -> None:
    (gone,) = [each for each in everything(catalog, before, after).gone if each.name == name]
    assert gone.kind == kind
    assert gone.why.startswith(f"{after}: {why}")


def test_a_renamed_variable_is_told_by_its_note(catalog: Catalog) -> None:
    report = everything(catalog, "rocm-open-mi355", "vllm-0.14.1-rocm")
    (gone,) = [each for each in report.gone if each.name == "VLLM_USE_AITER_UNIFIED_ATTENTION"]
    assert "VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION" in gone.notes[0]


def test_defaults_that_changed(report: Report) -> None:
    found = {default.flag: default for default in report.defaults}
    assert (found["gpu-memory-utilization"].before, found["gpu-memory-utilization"].after) == (0.9, 0.92)
    assert found["gpu-memory-utilization"].used
    assert {flag for flag, default in found.items() if not default.used} != set()
    assert "max-num-batched-tokens" not in found


@pytest.mark.parametrize(
    ("why", "starts", "because"),
    [
        ("SIGTERM cuts every request", True, "it is for engine >=0.18"),
        ("bf16 activations win", True, "it is for engine >=0.32"),
        ("FlashInfer's MoE with mxfp8", False, "it is for engine >=0.10.2,<0.32"),
        ("slower on Hopper at small concurrency", False, "it is for engine ==0.12.0"),
    ],
)
def test_a_rule_starts_or_stops(report: Report, catalog: Catalog, why: str, starts: bool, because: str) -> None:
    (found,) = [each for each in report.rules if why in each.why]
    assert (found.file, found.starts, found.because) == (RULES, starts, because)
    assert [rule.why for _, number, rule in catalog.rules(catalog.model(LARGE)) if number == found.rule] == [found.why]
    assert f"{LARGE} {'h100' if why.startswith('slower') else 'b200'}-8 balanced" in found.cases


def test_rules_of_features_are_told_without_a_fleet(catalog: Catalog) -> None:
    rules = everything(catalog, "vllm-0.10.2-cuda", OLD).rules
    assert any("not compatible with structured output" in rule.why and not rule.starts for rule in rules)


def test_a_rule_that_starts_with_another_tensor_parallelism_says_so(catalog: Catalog) -> None:
    own = {rule.why: rule for _, _, rule in catalog.rules(catalog.model(LARGE))}
    (compresses,) = [rule for why, rule in own.items() if "Compresses what eight" in why]
    changed = compresses.model_copy(update={"when": compresses.when.model_copy(update={"engine": None})})
    rules = [changed if rule is compresses else rule for rule in catalog.model(LARGE).rules]
    # Without the variable's value: the old image does not know it, and a note is enough to hold.
    rules[rules.index(changed)] = changed.model_copy(update={"env": {}, "note": "a note of a test"})
    model = catalog.model(LARGE).model_copy(update={"rules": rules})
    mutated = dataclasses.replace(catalog, models={**catalog.models, LARGE: model})
    report = one(mutated, "rocm-open-mi300", "vllm-0.14.1-rocm", "mi300x-8", profile="max-throughput")
    (found,) = [rule for rule in report.rules if "Compresses what eight" in rule.why]
    assert (found.starts, found.because) == (True, "tensor-parallel-size is 8 in place of 1")


def test_instances_and_install_form_are_part_of_the_diff(catalog: Catalog) -> None:
    (found,) = one(catalog, "rocm-open-mi300", "vllm-0.14.1-rocm", "mi300x-8", profile="max-throughput").effects
    assert {Change("instances", 8, 1), Change("install", "docker", "wheel")} <= set(found.changes)


def test_the_diff_of_a_combination(report: Report) -> None:
    assert effect(report, LARGE, "b200-8 max-throughput").changes == (
        Change("args.moe-backend", None, "flashinfer_trtllm"),
        Change("args.performance-mode", None, "throughput"),
        Change("args.quantization-config.moe.activation", None, "mxfp8"),
        Change("args.shutdown-timeout", None, 30),
        Change("args.structured-outputs-config.backend", None, "xgrammar"),
        Change("env.VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8", "1", None),
    )


def test_equal_diffs_stand_together(report: Report) -> None:
    found = effect(report, LARGE, "h100-8 balanced")
    assert "h200-1 balanced" in found.cases
    assert "h100-8 max-throughput" not in found.cases
    assert Change("env.VLLM_MXFP4_USE_MARLIN", "1", None) in found.changes


def test_what_was_refused_before_is_no_change(report: Report) -> None:
    found = effect(report, LARGE, "a100-40gb-1 balanced")
    assert (found.outcome, found.changes) == ("unchanged", ())
    assert "does not fit" in (found.reason or "")


@pytest.mark.parametrize(
    ("before", "after", "more", "outcome", "reason"),
    [
        (OLD, "vllm-0.10.2-cuda", {"features": ("eagle3",)}, "refused", "needs 0.12"),
        ("vllm-0.10.2-cuda", OLD, {"features": ("eagle3",)}, "possible", "needs 0.12"),
        (
            OLD,
            NEW,
            {"overrides": overridden(env={"VLLM_MXFP4_USE_MARLIN": "1"})},
            "refused",
            "does not read the environment variable 'VLLM_MXFP4_USE_MARLIN'",
        ),
        (OLD, NEW, {"install": "docker"}, "changed", None),
    ],
    ids=["by a rule", "no longer by a rule", "by an override", "not"],
)
def test_a_deployment_is_refused(
    catalog: Catalog, before: str, after: str, more: dict[str, Any], outcome: str, reason: str | None
) -> None:
    report = one(catalog, before, after, "h200-8", **more)
    (found,) = report.effects
    assert found.outcome == outcome
    assert (reason or "") in (found.reason or "")
    assert (found.reason is None) is (reason is None)
    assert report.changes


def test_a_name_that_only_an_override_uses_is_gone_too(catalog: Catalog) -> None:
    own = overridden(env={"VLLM_MXFP4_USE_MARLIN": "1"})
    report = one(catalog, OLD, NEW, "h200-8", profile="max-throughput", overrides=own)
    assert [(gone.name, gone.used_by) for gone in report.gone] == [("VLLM_MXFP4_USE_MARLIN", ("fleet.yml",))]


def test_a_flag_that_is_gone_is_told_once_whatever_its_keys(catalog: Catalog) -> None:
    report = everything(catalog, NEW, "vllm-0.10.1-cuda")
    assert len({(gone.kind, gone.name) for gone in report.gone}) == len(report.gone)
    assert "quantization-config" in {gone.name for gone in report.gone if gone.kind == "flag"}


def test_nothing_changes_where_nothing_is_concerned(catalog: Catalog) -> None:
    old, new = upgrade.engines(catalog, OLD, NEW)
    report = upgrade.compare(catalog, old, new, [])
    assert not report.changes
    assert (report.gone, report.rules, report.effects) == ((), (), ())


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (OLD, "vllm-9.9.9-cuda", "there is no engine 'vllm-9.9.9-cuda'"),
        (OLD, OLD, "are both"),
        (OLD, "vllm-0.14.1-rocm", "is for cuda and vllm-0.14.1-rocm for rocm"),
        ("rocm-open-mi300", "rocm-open-r9700", "no host class has a recipe with both"),
    ],
    ids=["unknown", "the same", "another accelerator", "nothing in common"],
)
def test_engines_that_cannot_be_compared(catalog: Catalog, before: str, after: str, says: str) -> None:
    with pytest.raises(FleetError) as caught:
        everything(catalog, before, after)
    assert says in caught.value.message
    assert caught.value.exit_code == 2
