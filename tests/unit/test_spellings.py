"""The guides' spellings: one id for each name, release and place that uses it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import spellings
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import app
from vllm_fleet.reports import recipe_check
from vllm_fleet.resolve.resolve import Deployment, Question, resolve
from vllm_fleet.schema.fleet import Overrides
from vllm_fleet.schema.spelling import Spelling

LARGE = "openai/gpt-oss-120b"
RULES = "recipes/models/openai/gpt-oss-120b.yml"
PASSES = "compilation-config"


def ask(catalog: Catalog, host_class: str, engine: str, **layers: Any) -> Deployment:
    own = Overrides(why="a test wants it so", **layers) if layers else None
    return resolve(catalog, Question(host_class, LARGE, engine=engine, overrides=own))


def with_entries(catalog: Catalog, *entries: Spelling) -> Catalog:
    """The catalogue with more entries at the end of the map."""
    changed = catalog.spellings.model_copy(update={"spellings": [*catalog.spellings.spellings, *entries]})
    return dataclasses.replace(catalog, spellings=changed)


def entry(**changes: Any) -> Spelling:
    base = {
        "name": "env.VLLM_OF_A_TEST",
        "to": None,
        "engine": ">=0.10.1",
        "why": "an entry of a test",
        "source": "test",
    }
    return Spelling(**{**base, **changes})


@pytest.mark.parametrize(
    ("host_class", "engine", "key", "value", "written"),
    [
        ("b200-8", "vllm-0.10.1-cuda", "env.VLLM_USE_FLASHINFER_MOE_MXFP4_BF16", "1", "VLLM_USE_FLASHINFER_MXFP4_BF16"),
        ("b200-8", "vllm-0.10.2-cuda", "args.cuda-graph-sizes", 2048, "max-cudagraph-capture-size"),
        ("b200-8", "vllm-0.10.2-cuda", f"args.{PASSES}.pass_config.enable_noop", True, "pass_config.eliminate_noops"),
        ("b200-8", "vllm-0.12.0-cuda", "args.max-cudagraph-capture-size", 2048, None),
        ("b200-8", "vllm-0.12.0-cuda", f"args.{PASSES}.pass_config.eliminate_noops", True, None),
        ("mi355x-8", "vllm-0.14.1-rocm", "env.VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION", "1", "VLLM_USE_AITER_UNIFIED"),
        ("mi300x-8", "vllm-0.14.1-rocm", "env.VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION", "1", None),
        ("mi300x-8", "rocm-open-mi300", "env.VLLM_USE_AITER_UNIFIED_ATTENTION", "1", None),
    ],
)
def test_a_rule_gives_the_name_of_the_release(
    catalog: Catalog, host_class: str, engine: str, key: str, value: Any, written: str | None
) -> None:
    deployment = ask(catalog, host_class, engine)
    found: Any = {"args": deployment.args, "env": deployment.env}
    for part in key.split("."):
        found = found[part]
    assert found == value
    origin = deployment.provenance[key]
    assert (origin.file, origin.rule is not None) == (RULES, True)
    said = [note for note in deployment.notes if f"is {key.partition('.')[2]} with {engine}" in note]
    if written is None:
        assert (origin.spelling, said) == (None, [])
    else:
        assert origin.spelling is not None
        assert written in origin.spelling.spelling.name
        assert len(said) == 1
        assert f"({RULES}, rule {origin.rule})" in said[0]


@pytest.mark.parametrize(
    ("host_class", "engine", "layers", "there", "absent"),
    [
        ("h200-8", "vllm-0.12.0-cuda", {"args": {"cuda-graph-sizes": 64}}, ("max-cudagraph-capture-size", 64), ""),
        ("h200-8", "vllm-0.10.2-cuda", {"args": {"max-cudagraph-capture-size": 64}}, ("cuda-graph-sizes", 64), ""),
        (
            "b200-8",
            "vllm-0.32.0-cuda",
            {"args": {PASSES: {"pass_config": {"enable_noop": False}}}},
            (PASSES, {"pass_config": {"fuse_allreduce_rms": True, "eliminate_noops": False}}),
            "",
        ),
        ("a100-80gb-1", "vllm-0.32.0-cuda", {"env": {"VLLM_ATTENTION_BACKEND": "X"}}, ("attention-backend", "X"), ""),
        (
            "mi300x-8",
            "vllm-0.14.1-rocm",
            {"env": {"VLLM_USE_AITER_UNIFIED_ATTENTION": "0"}},
            ("VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION", "0"),
            "VLLM_USE_AITER_UNIFIED_ATTENTION",
        ),
    ],
    ids=["an old flag", "a new flag", "a key", "a variable that is a flag now", "a variable"],
)
def test_an_override_in_the_guides_spelling_wins_over_the_rule(
    catalog: Catalog, host_class: str, engine: str, layers: dict[str, Any], there: tuple[str, Any], absent: str
) -> None:
    deployment = ask(catalog, host_class, engine, **layers)
    values = {**deployment.args, **deployment.env}
    assert values[there[0]] == there[1]
    assert absent not in values
    said = [note for note in deployment.notes if "(fleet.yml)" in note]
    assert len(said) == 1
    assert engine in said[0]


@pytest.mark.parametrize(
    ("host_class", "engine", "layers", "name"),
    [
        ("mi300x-8", "vllm-0.14.1-rocm", {"args": {"disable-log-requests": True}}, "disable-log-requests"),
        ("mi355x-8", "vllm-0.14.1-rocm", {"env": {"VLLM_USE_AITER_TRITON_GEMM": "1"}}, "VLLM_USE_AITER_TRITON_GEMM"),
        ("mi355x-8", "vllm-0.14.1-rocm", {}, "VLLM_ROCM_USE_AITER_FUSED_MOE_A16W4"),
        ("mi300x-8", "vllm-0.14.1-rocm", {}, "disable-log-request"),
        ("mi300x-8", "vllm-0.14.1-rocm", {"args": {PASSES: {"full_cuda_graph": True}}}, f"{PASSES}.full_cuda_graph"),
    ],
)
def test_what_no_release_reads_is_left_out_with_a_note(
    catalog: Catalog, host_class: str, engine: str, layers: dict[str, Any], name: str
) -> None:
    deployment = ask(catalog, host_class, engine, **layers)
    assert not {name, name.partition(".")[2]} & {*deployment.args, *deployment.env, *deployment.args[PASSES]}
    (note,) = [note for note in deployment.notes if note.startswith(f"{name} (")]
    assert f"is left out with {engine}: " in note
    assert ("fleet.yml" in note) is bool(layers)


def test_null_takes_away_what_a_rule_sets_under_the_other_name(catalog: Catalog) -> None:
    deployment = ask(catalog, "h200-8", "vllm-0.12.0-cuda", args={"cuda-graph-sizes": None})
    assert "max-cudagraph-capture-size" not in deployment.args
    assert "args.max-cudagraph-capture-size" not in deployment.provenance


def test_null_for_what_is_left_out_anyway_silences_the_note(catalog: Catalog) -> None:
    deployment = ask(catalog, "mi300x-8", "vllm-0.14.1-rocm", args={"disable-log-request": None})
    assert not [note for note in deployment.notes if "disable-log-request" in note]


def test_one_name_in_two_spellings_is_an_error(catalog: Catalog) -> None:
    own = {"cuda-graph-sizes": 64, "max-cudagraph-capture-size": 128}
    with pytest.raises(FleetError) as caught:
        ask(catalog, "h200-8", "vllm-0.12.0-cuda", args=own)
    assert "are one name in this release" in caught.value.message
    assert (caught.value.file, caught.value.key) == ("fleet.yml", "args.cuda-graph-sizes")


def test_a_name_without_an_entry_stays_an_error(catalog: Catalog) -> None:
    with pytest.raises(FleetError, match="does not read the environment variable 'VLLM_MXFP4_USE_MARLIN'"):
        ask(catalog, "h200-8", "vllm-0.32.0-cuda", env={"VLLM_MXFP4_USE_MARLIN": "1"})


def test_a_deprecated_name_without_an_entry_is_told(catalog: Catalog) -> None:
    own = {PASSES: {"pass_config": {"enable_fusion": True}}}
    deployment = ask(catalog, "b200-8", "vllm-0.12.0-cuda", args=own)
    name = f"{PASSES}.pass_config.enable_fusion"
    note = f"{name} is deprecated in vllm-0.12.0-cuda: it still works, and a later release removes it"
    assert note in deployment.notes
    assert not [note for note in ask(catalog, "b200-8", "vllm-0.12.0-cuda").notes if "is deprecated in" in note]


@pytest.mark.parametrize(
    ("release", "gone"),
    [("vllm-0.10.2-cuda", set()), ("vllm-0.12.0-cuda", {"enable_noop", "enable_fi_allreduce_fusion"})],
)
def test_the_pass_config_keys_that_a_release_announces_to_go(catalog: Catalog, release: str, gone: set[str]) -> None:
    names = catalog.names(catalog.engines[release])
    known = ("enable_noop", "enable_fi_allreduce_fusion", "eliminate_noops")
    assert {key for key in known if names.deprecates(f"args.{PASSES}.pass_config.{key}")} == gone
    assert names.deprecates("args.disable-log-requests")
    assert not names.deprecates("env.VLLM_USE_V1")


def test_translation_changes_nothing_in_place(catalog: Catalog) -> None:
    active = spellings.applying(catalog, catalog.engines["vllm-0.32.0-cuda"])
    args = {PASSES: {"pass_config": {"enable_noop": True}}}
    found = spellings.translate(args, {}, active)
    assert args == {PASSES: {"pass_config": {"enable_noop": True}}}
    assert found.args == {PASSES: {"pass_config": {"eliminate_noops": True}}}


def test_a_mapping_that_is_left_empty_goes_too(catalog: Catalog) -> None:
    active = spellings.applying(catalog, catalog.engines["vllm-0.14.1-rocm"])
    found = spellings.translate({PASSES: {"full_cuda_graph": True}}, {}, active)
    assert (found.args, set(found.dropped)) == ({}, {f"args.{PASSES}.full_cuda_graph"})


def test_explain_tells_rule_map_and_what_a_fact_chooses(fleets: Path) -> None:
    path = fleets / "golden" / "fleet.yml"
    spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    pool = {**spec["pools"]["lab"], "host_class": "mi355x-8", "model": LARGE, "engine": "vllm-0.14.1-rocm", "hosts": 1}
    path.write_text(yaml.safe_dump({**spec, "pools": {"amd": pool}}), encoding="utf-8")
    record = json.loads(CliRunner().invoke(app, ["explain", "amd-0", "--fleet", "golden", "--json"]).stdout)
    told = record["keys"]["env.VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION"]
    assert (told["file"], told["spelling"]["name"]) == (RULES, "env.VLLM_USE_AITER_UNIFIED_ATTENTION")
    assert [entry["unless"] for entry in record["alternatives"]] == [{"mec_firmware_below": 177}]
    text = CliRunner().invoke(app, ["explain", "amd-0", "--fleet", "golden"]).stdout
    assert "written env.VLLM_USE_AITER_UNIFIED_ATTENTION there; recipes/spellings.yml entry" in " ".join(text.split())
    assert "note: VLLM_ROCM_USE_AITER_FUSED_MOE_A16W4 (" in text


def test_recipe_tells_of_the_map(catalog: Catalog) -> None:
    asked = ["recipe", "--host-class", "b200-8", "--model", LARGE, "--engine", "vllm-0.10.1-cuda"]
    record = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    told = record["provenance"]["env.VLLM_USE_FLASHINFER_MOE_MXFP4_BF16"]
    assert (told["file"], told["spelling"]["file"]) == (RULES, "recipes/spellings.yml")
    number = told["spelling"]["entry"]
    assert catalog.spellings.spellings[number - 1].name == told["spelling"]["name"]
    assert "spelling" not in record["provenance"]["args.async-scheduling"]
    text = CliRunner().invoke(app, asked).stdout
    assert "note: VLLM_USE_FLASHINFER_MXFP4_BF16_MOE (" in text


def test_the_map_of_the_recipes_is_right(catalog: Catalog) -> None:
    assert list(recipe_check.spelling_errors(catalog)) == []


@pytest.mark.parametrize(
    ("change", "says", "key"),
    [
        ({"engine": ">=9"}, "matches no class, engine and model", ""),
        ({"engine": ">=0.14,<0.15", "accelerator": "cuda"}, "matches no class, engine and model", ""),
        ({"engine": "0.12 or so"}, "is not a range of releases", ".engine"),
        ({"to": "env.VLLM_NO_SUCH"}, "does not read 'env.VLLM_NO_SUCH'", ".to"),
        ({"to": f"args.{PASSES}.pass_config.fuse_all"}, "does not read 'args.compilation-config.pass_config", ".to"),
        ({"name": "env.VLLM_USE_V1", "engine": "==0.10.1"}, "reads 'env.VLLM_USE_V1' itself", ".name"),
        ({"name": "args.disable-log-request", "engine": "==0.32.0"}, "is listed twice for", ""),
        (
            {"to": "args.cuda-graph-sizes", "engine": "==0.12.0"},
            "'args.cuda-graph-sizes' is itself renamed for vllm-0.12.0-cuda",
            ".to",
        ),
    ],
    ids=["dead release", "dead accelerator", "no range", "unread", "unread key", "read itself", "twice", "a chain"],
)
def test_a_mutated_map_is_caught(catalog: Catalog, change: dict[str, Any], says: str, key: str) -> None:
    index = len(catalog.spellings.spellings)
    faults = list(recipe_check.spelling_errors(with_entries(catalog, entry(**change))))
    assert any(says in fault.message and fault.key == f"spellings.{index}{key}" for fault in faults)
    assert {fault.file for fault in faults} == {"recipes/spellings.yml"}


def test_check_tells_of_the_map(catalog: Catalog) -> None:
    said = [fault.message for fault in recipe_check.recipe_errors(with_entries(catalog, entry(engine=">=9")))]
    assert said == ["matches no class, engine and model"]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "VLLM_USE_V1"},
        {"name": "args."},
        {"name": "env.lower"},
        {"to": "env.VLLM_OF_A_TEST"},
        {"accelerator": "tpu"},
        {"extra": 1},
    ],
    ids=["no group", "no name", "no variable", "itself", "no accelerator", "no such key"],
)
def test_an_entry_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        entry(**change)


def test_dropping_must_be_said() -> None:
    with pytest.raises(ValidationError, match="to"):
        Spelling(name="env.VLLM_X", engine=">=0.10", why="an entry of a test", source="test")  # type: ignore[call-arg]
