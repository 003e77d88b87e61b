"""Names, values and memory: what is proven of a deployment, and what fits."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.host import instance_files
from vllm_fleet.resolve import memory_fit
from vllm_fleet.resolve.resolve import Deployment, Question, resolve
from vllm_fleet.schema.fleet import Overrides

LARGE = "openai/gpt-oss-120b"
MARLIN = "VLLM_MXFP4_USE_MARLIN"


def ask(catalog: Catalog, host_class: str, engine: str | None, profile: Any = "balanced", **more: Any) -> Deployment:
    return resolve(catalog, Question(host_class, more.pop("model", LARGE), profile, engine, **more))


def overridden(**layers: Any) -> Overrides:
    return Overrides(why="a test wants it so", **layers)


@pytest.mark.parametrize(("engine", "kind"), [("vllm-0.12.0-cuda", str), ("vllm-0.32.0-cuda", dict)])
def test_a_mapping_is_json_text_where_a_mapping_is_fatal(catalog: Catalog, engine: str, kind: type) -> None:
    deployment = ask(catalog, "b200-8", engine)
    assert isinstance(deployment.record()["args"]["compilation-config"], dict)
    text = instance_files.config_text(deployment.args, mappings_as_text=deployment.mappings_as_text)
    value = yaml.safe_load(text)["compilation-config"]
    assert isinstance(value, kind)
    assert yaml.safe_load(value) if kind is str else value == deployment.args["compilation-config"]


@pytest.mark.parametrize(
    ("args", "env", "says"),
    [
        ({}, {MARLIN: "1"}, "does not read the environment variable"),
        ({}, {"HSA_NO_SCRATCH_RECLAIM": "1"}, "does not read the environment variable"),
        ({"tool-call-parser": "opneai"}, {}, "does not take 'opneai'"),
        ({"block-size": 63}, {}, "does not take 63"),
        ({"max-num-seqs": "many"}, {}, "not a number"),
        ({"tensor-parallel-size": "2"}, {}, "tensor-parallel-size is '2'"),
        ({"compilation-config": {"full_cuda_graphs": True}}, {}, "compilation-config.full_cuda_graphs"),
        ({"compilation-config": {"pass_config": 5}}, {}, "'compilation-config.pass_config' is 5, not a mapping"),
    ],
    ids=[
        "declared and used by nothing",
        "of another accelerator",
        "no such parser",
        "no such choice",
        "no number",
        "no size",
        "nested key",
        "no mapping",
    ],
)
def test_names_and_values_are_proven(catalog: Catalog, args: Any, env: Any, says: str) -> None:
    with pytest.raises(FleetError) as caught:
        ask(catalog, "b200-8", "vllm-0.10.2-cuda", overrides=overridden(args=args, env=env))
    assert caught.value.code == "bad-input"
    assert says in caught.value.message


def test_the_utilization_of_the_release_counts(catalog: Catalog) -> None:
    old, new = (ask(catalog, "h200-1", f"vllm-{release}-cuda").fit for release in ("0.12.0", "0.32.0"))
    assert old.device
    assert new.device
    assert new.device.budget - old.device.budget == pytest.approx(0.02 * 139)


def test_an_fp8_cache_halves_a_sequence(catalog: Catalog) -> None:
    own = overridden(args={"kv-cache-dtype": None})
    half, full = (ask(catalog, "b200-1", "vllm-0.12.0-cuda", overrides=o).fit for o in (None, own))
    assert full.kv_per_sequence_gib == pytest.approx(2 * half.kv_per_sequence_gib)
    # 18 full layers of 131072 tokens and 18 of 128: keys and values of 8 heads of 64 in two bytes each.
    assert full.kv_per_sequence_gib == pytest.approx(2 * 8 * 64 * 2 * 18 * (131072 + 128) / 2**30)


@pytest.mark.parametrize(
    ("engine", "length", "sequences"),
    [
        # KV cache: 178 x 0.9 - 68.46 - 2.16 - 0.13 = 89.45 GiB. One sequence: 2 x 8 x 64 values x 18 x (length + 128).
        ("vllm-0.12.0-cuda", 32768, 158),
        ("vllm-0.12.0-cuda", 2048, 1024),
        # The older guide's 512 stays the most where more would fit; its cache is bf16.
        ("vllm-0.10.2-cuda", 2048, 512),
        ("vllm-0.10.2-cuda", 32768, 79),
    ],
)
def test_max_throughput_takes_what_fits_of_the_fleets_own_length(
    catalog: Catalog, engine: str, length: int, sequences: int
) -> None:
    deployment = ask(catalog, "b200-8", engine, "max-throughput", overrides=overridden(args={"max-model-len": length}))
    assert deployment.args["max-num-seqs"] == sequences
    assert "KV cache" in deployment.provenance["args.max-num-seqs"].why
    own = overridden(args={"max-model-len": length, "max-num-seqs": 7})
    assert ask(catalog, "b200-8", engine, "max-throughput", overrides=own).args["max-num-seqs"] == 7
    balanced = ask(catalog, "b200-8", engine, overrides=overridden(args={"max-model-len": length}))
    assert balanced.args["max-num-seqs"] == 128


def test_what_an_override_takes_away_has_no_origin(catalog: Catalog) -> None:
    own = overridden(args={"compilation-config": None})
    deployment = ask(catalog, "b200-8", "vllm-0.12.0-cuda", overrides=own)
    assert "compilation-config" not in deployment.args
    assert [key for key in deployment.provenance if "compilation" in key] == []


@pytest.mark.parametrize(
    ("host_class", "engine", "more", "sequences"),
    [
        # KV cache of one H100: 79 x 0.95 - 65.97 - 0.78 for 109 sequences - 0.13 = 8.17 GiB; a sequence of 2048 tokens
        # in bf16 needs 2 x 8 x 64 x 2 bytes x 18 x (2048 + 128) = 0.0747 GiB.
        ("h100-1", "vllm-0.12.0-cuda", {}, 109),
        ("h200-8", "vllm-0.12.0-cuda", {}, 720),
        ("b200-8", "vllm-0.12.0-cuda", {}, 1024),
        ("mi300x-8", "vllm-0.14.1-rocm", {}, 1024),
        ("b200-8", "vllm-0.10.2-cuda", {}, 512),
        ("h100-1", "vllm-0.10.2-cuda", {}, 109),
        # The max-model-len of a recipe is a ceiling: the guide's benchmark sends 2048 tokens under 10240.
        ("h200-8", "vllm-0.10.2-cuda", {"features": ("benchmark",)}, 512),
    ],
)
def test_max_throughput_without_a_length_assumes_that_of_the_guides_benchmark(
    catalog: Catalog, host_class: str, engine: str, more: dict[str, Any], sequences: int
) -> None:
    deployment = ask(catalog, host_class, engine, "max-throughput", **more)
    assert deployment.args["max-num-seqs"] == sequences
    origin = deployment.provenance["args.max-num-seqs"]
    assert (origin.file, origin.rule) == ("vllm_fleet/resolve/memory_fit.py", None)
    assert "2048 tokens (assumed: 1024 in and 1024 out, as the guide measures)" in origin.why
    limit = "the 512 of recipes/models/openai/gpt-oss-120b.yml, rule" if "0.10" in engine else "large default, 1024"
    assert limit in origin.why
    assert "Benchmarking Performance" in origin.source


def test_the_fleets_own_length_is_said(catalog: Catalog) -> None:
    own = overridden(args={"max-model-len": 32768})
    why = (
        ask(catalog, "b200-8", "vllm-0.12.0-cuda", "max-throughput", overrides=own).provenance["args.max-num-seqs"].why
    )
    assert "32768 tokens (the fleet's own max-model-len)" in why


@pytest.mark.parametrize("nothing", [None, {"a": None}], ids=["null", "a mapping of nothing"])
def test_a_length_that_is_taken_away_is_none_of_the_fleets_own(catalog: Catalog, nothing: Any) -> None:
    own = overridden(args={"max-model-len": nothing})
    deployment = ask(catalog, "h100-1", "vllm-0.12.0-cuda", "max-throughput", overrides=own)
    assert "max-model-len" not in deployment.args
    assert deployment.args["max-num-seqs"] == 109


def test_a_model_with_a_shorter_context_is_not_assumed_to_go_beyond_it(catalog: Catalog) -> None:
    found = resolve(catalog, Question("cpu-2", "vllm-fleet/lab-gpt-oss", "max-throughput"))
    assert found.args["max-num-seqs"] == 16
    assert memory_fit.batch(
        found.fit, catalog.models["vllm-fleet/lab-gpt-oss"].shape, {"max-model-len": 512}, None
    ).basis == ("512 tokens (assumed: 1024 in and 1024 out, as the guide measures)")


@pytest.mark.parametrize(
    ("args", "env", "code", "says"),
    [
        ({"max-model-len": 0}, {}, "bad-input", "max-model-len is 0"),
        ({"max-model-len": 2.5}, {}, "bad-input", "max-model-len is 2.5"),
        ({}, {"VLLM_CPU_KVCACHE_SPACE": "much"}, "bad-input", "VLLM_CPU_KVCACHE_SPACE is 'much'"),
        ({}, {"VLLM_CPU_KVCACHE_SPACE": "-1"}, "bad-input", "VLLM_CPU_KVCACHE_SPACE is '-1'"),
        ({"max-model-len": 131072}, {"VLLM_CPU_KVCACHE_SPACE": "0.01"}, "refused", "one sequence of 131072 tokens"),
    ],
)
def test_what_is_no_size_is_an_error(
    catalog: Catalog, args: dict[str, Any], env: dict[str, Any], code: str, says: str
) -> None:
    with pytest.raises(FleetError) as caught:
        resolve(catalog, Question("cpu-2", "vllm-fleet/lab-gpt-oss", overrides=overridden(args=args, env=env)))
    assert (caught.value.code, says in caught.value.message) == (code, True)


@pytest.mark.parametrize("value", [0, -0.5, 1.5])
def test_a_utilization_is_a_share(catalog: Catalog, value: float) -> None:
    with pytest.raises(FleetError, match="gpu-memory-utilization is"):
        ask(catalog, "b200-8", None, overrides=overridden(args={"gpu-memory-utilization": value}))


@pytest.mark.parametrize(
    "value",
    [datetime.date(2026, 1, 1), b"x", float("nan"), float("inf"), {1: 2}, [{"a": b"x"}]],
    ids=["a date", "bytes", "nan", "infinity", "a number as key", "below"],
)
def test_what_no_config_file_can_hold_is_no_argument(value: Any) -> None:
    with pytest.raises(ValidationError, match="quote it"):
        overridden(args={"max-model-len": value})
