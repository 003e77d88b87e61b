"""What stands in the place of a name that is gone: one row for each name of the guides that a later engine drops."""

from __future__ import annotations

import dataclasses

import pytest
from typer.testing import CliRunner

from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import app
from vllm_fleet.reports import upgrade
from vllm_fleet.reports.recipe_check import FEATURES
from vllm_fleet.reports.upgrade import Case, Report
from vllm_fleet.resolve.resolve import Question
from vllm_fleet.schema.fleet import Overrides

OLDER, OLD, NEW = "vllm-0.10.2-cuda", "vllm-0.12.0-cuda", "vllm-0.32.0-cuda"
FORK, ROCM = "rocm-open-mi355", "vllm-0.14.1-rocm"


def everything(catalog: Catalog, before: str, after: str) -> Report:
    old, new = upgrade.engines(catalog, before, after)
    return upgrade.compare(catalog, old, new, upgrade.catalogue_cases(catalog, old, new, FEATURES))


@pytest.mark.parametrize(
    ("before", "after", "name", "instead"),
    [
        (OLD, NEW, "VLLM_ATTENTION_BACKEND", "attention-backend"),
        (OLD, NEW, "VLLM_MXFP4_USE_MARLIN", "moe-backend with the value marlin"),
        (OLD, NEW, "VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8", "quantization-config {moe: {activation: mxfp8}}"),
        (OLD, NEW, "VLLM_USE_FLASHINFER_MOE_MXFP4_BF16", "nothing; bf16 activations are what the release takes"),
        (OLDER, NEW, "cuda-graph-sizes", "max-cudagraph-capture-size"),
        (OLDER, NEW, "compilation-config.pass_config.enable_fi_allreduce_fusion", "fuse_allreduce_rms"),
        (OLDER, NEW, "compilation-config.pass_config.enable_noop", "eliminate_noops"),
        (OLDER, OLD, "VLLM_FLASHINFER_ALLREDUCE_FUSION_THRESHOLDS_MB", "fi_allreduce_fusion_max_size_mb"),
        (FORK, ROCM, "compilation-config.full_cuda_graph", "cudagraph_mode"),
        (FORK, ROCM, "VLLM_USE_AITER_UNIFIED_ATTENTION", "VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION"),
        (FORK, ROCM, "VLLM_USE_AITER_TRITON_GEMM", "nothing"),
        (FORK, ROCM, "TRITON_HIP_PRESHUFFLE_SCALES", "nothing"),
    ],
)
def test_a_replacement_is_named(catalog: Catalog, before: str, after: str, name: str, instead: str) -> None:
    (gone,) = [each for each in everything(catalog, before, after).gone if each.name == name]
    assert instead in (gone.instead or "")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("vllm-0.10.1-cuda", OLDER),
        ("vllm-0.10.1-cuda", OLD),
        ("vllm-0.10.1-cuda", NEW),
        (OLDER, OLD),
        (OLDER, NEW),
        (OLD, NEW),
        ("rocm-open-mi300", ROCM),
        (FORK, ROCM),
        (FORK, "vllm-0.32.0-rocm"),
        (ROCM, "vllm-0.32.0-rocm"),
    ],
)
def test_on_the_way_forward_no_name_is_gone_without_a_replacement(catalog: Catalog, before: str, after: str) -> None:
    assert [gone.name for gone in everything(catalog, before, after).gone if not gone.instead] == []


ENGINES = ("vllm-0.10.1-cuda", OLDER, OLD, ROCM, NEW)


@pytest.mark.parametrize(
    ("group", "name", "reads"),
    [
        ("env", "VLLM_ATTENTION_BACKEND", "yyyy-"),
        ("flags", "attention-backend", "---yy"),
        ("flags", "cuda-graph-sizes", "yyy--"),
        ("flags", "max-cudagraph-capture-size", "--yyy"),
        ("pass_config", "enable_fi_allreduce_fusion", "yyy--"),
        ("pass_config", "enable_noop", "yyy--"),
        ("pass_config", "fuse_allreduce_rms", "--yyy"),
        ("pass_config", "eliminate_noops", "--yyy"),
        ("env", "VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8", "yyyy-"),
        ("env", "VLLM_USE_FLASHINFER_MOE_MXFP4_BF16", "yyyy-"),
        ("flags", "moe-backend", "----y"),
        ("flags", "quantization-config", "----y"),
    ],
)
def test_which_release_reads_it(catalog: Catalog, group: str, name: str, reads: str) -> None:
    found = (name in getattr(catalog.names(catalog.engine(engine)), group) for engine in ENGINES)
    assert "".join("y" if read else "-" for read in found) == reads


@pytest.mark.parametrize("flag", ["attention-backend", "moe-backend", "quantization-config"])
def test_a_flag_that_is_named_is_one_of_the_release(catalog: Catalog, flag: str) -> None:
    assert flag in catalog.names(catalog.engine(NEW)).flags


def test_an_override_is_told_too(catalog: Catalog) -> None:
    old, new = upgrade.engines(catalog, OLD, NEW)
    own = Overrides(why="a test wants it so", env={"VLLM_ATTENTION_BACKEND": "FLASH_ATTN"})
    asked = Question("h200-8", "openai/gpt-oss-120b", "max-throughput", overrides=own)
    (gone,) = upgrade.compare(catalog, old, new, [Case("pool", asked, ())]).gone
    assert (gone.used_by, "attention-backend" in (gone.instead or "")) == (("fleet.yml",), True)


def test_a_rule_that_only_names_replacements_changes_nothing(catalog: Catalog) -> None:
    silent = {
        (file, number)
        for file, number, rule in catalog.rules(catalog.model("openai/gpt-oss-120b"))
        if rule.replaces and not rule.note
    }
    assert silent
    assert silent & {(rule.file, rule.rule) for rule in everything(catalog, OLD, NEW).rules} == set()


def test_the_command_prints_the_replacement() -> None:
    text = CliRunner().invoke(app, ["upgrade-check", "--from", OLD, "--to", NEW]).stdout
    told = [line for line in text.splitlines() if "replacement: " in line]
    assert len(told) == 4
    assert any("attention-backend" in line for line in told)


def test_what_nobody_replaces_says_nothing(catalog: Catalog) -> None:
    bare = {
        name: model.model_copy(update={"rules": [rule.model_copy(update={"replaces": {}}) for rule in model.rules]})
        for name, model in catalog.models.items()
    }
    report = everything(dataclasses.replace(catalog, models=bare), OLD, NEW)
    assert {gone.name: gone.instead for gone in report.gone}["VLLM_MXFP4_USE_MARLIN"] is None
