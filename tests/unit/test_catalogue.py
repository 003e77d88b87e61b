"""What the catalogue must give for the systems of the two guides: one id for each row."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from vllm_fleet import crosscheck, plan, render, site
from vllm_fleet.catalog import Catalog
from vllm_fleet.errors import FleetError
from vllm_fleet.fleet_schema import Overrides
from vllm_fleet.resolve import Deployment, Question, resolve
from vllm_fleet.schema import Rule, When

LARGE, SMALL = "openai/gpt-oss-120b", "openai/gpt-oss-20b"
MXFP8, BF16 = "VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8", "VLLM_USE_FLASHINFER_MOE_MXFP4_BF16"
MARLIN = "VLLM_MXFP4_USE_MARLIN"
PROFILES = ("max-throughput", "balanced", "min-latency")


def ask(catalog: Catalog, host_class: str, engine: str | None, profile: Any = "balanced", **more: Any) -> Deployment:
    return resolve(catalog, Question(host_class, more.pop("model", LARGE), profile, engine, **more))


def overridden(**layers: Any) -> Overrides:
    return Overrides(why="a test wants it so", **layers)


def subset(wanted: dict[str, Any], found: Any) -> bool:
    """Whether all that is wanted is found, mappings key by key."""
    return all(
        subset(value, found.get(key, {})) if isinstance(value, dict) else found.get(key) == value
        for key, value in wanted.items()
    )


ROWS: dict[str, tuple[tuple[str, str, str], dict[str, Any]]] = {
    "b200-8, 0.12.0, max-throughput": (
        ("b200-8", "vllm-0.12.0-cuda", "max-throughput"),
        {
            "shape": (8, 1),
            "args": {
                "kv-cache-dtype": "fp8",
                "compilation-config": {"pass_config": {"fuse_allreduce_rms": True, "eliminate_noops": True}},
                "max-cudagraph-capture-size": 2048,
            },
            "env": {MXFP8: "1"},
            "absent": [BF16, MARLIN],
        },
    ),
    "b200-8, 0.12.0, min-latency": (
        ("b200-8", "vllm-0.12.0-cuda", "min-latency"),
        {"shape": (1, 8), "args": {"max-num-seqs": 8}},
    ),
    "b200-8, 0.12.0, balanced": (
        ("b200-8", "vllm-0.12.0-cuda", "balanced"),
        {"shape": (4, 2), "args": {"max-num-seqs": 128}},
    ),
    "gb200-4, 0.12.0, min-latency": (
        ("gb200-4", "vllm-0.12.0-cuda", "min-latency"),
        {"shape": (1, 4), "args": {"kv-cache-dtype": "fp8"}, "env": {MXFP8: "1"}},
    ),
    "h100-1, 0.12.0": (
        ("h100-1", "vllm-0.12.0-cuda", "balanced"),
        {
            "shape": (1, 1),
            "args": {"gpu-memory-utilization": 0.95, "max-num-batched-tokens": 1024},
            "absent": ["kv-cache-dtype", "compilation-config", MXFP8],
        },
    ),
    "h100-8, 0.12.0, max-throughput": (
        ("h100-8", "vllm-0.12.0-cuda", "max-throughput"),
        {"shape": (8, 1), "args": {"gpu-memory-utilization": 0.95}, "absent": [MARLIN]},
    ),
    "h200-8, 0.12.0, balanced": (
        ("h200-8", "vllm-0.12.0-cuda", "balanced"),
        {"shape": (4, 2), "env": {MARLIN: "1"}, "absent": ["gpu-memory-utilization", "kv-cache-dtype"]},
    ),
    "b200-8, 0.10.1": (
        ("b200-8", "vllm-0.10.1-cuda", "balanced"),
        {
            "args": {
                "cuda-graph-sizes": 2048,
                "compilation-config": {"pass_config": {"enable_fi_allreduce_fusion": True, "enable_noop": True}},
            },
            "env": {BF16: "1"},
            "absent": [MXFP8, "VLLM_USE_FLASHINFER_MXFP4_MOE", "max-cudagraph-capture-size", "tool-call-parser"],
            "note": "VLLM_USE_FLASHINFER_MXFP4_BF16_MOE",
        },
    ),
    "b200-8, 0.10.2": (
        ("b200-8", "vllm-0.10.2-cuda", "max-throughput"),
        {
            "args": {"max-num-seqs": 512, "tool-call-parser": "openai"},
            "env": {MXFP8: "1", "VLLM_FLASHINFER_ALLREDUCE_FUSION_THRESHOLDS_MB": '{"2":32,"4":32,"8":8}'},
            "absent": [BF16],
        },
    ),
    "b200-8, 0.32.0": (
        ("b200-8", "vllm-0.32.0-cuda", "max-throughput"),
        {
            "args": {"quantization-config": {"moe": {"activation": "mxfp8"}}},
            "absent": [MXFP8, BF16, MARLIN, "disable-log-requests", "VLLM_FLASHINFER_ALLREDUCE_FUSION_THRESHOLDS_MB"],
            "note": "not run on hardware",
        },
    ),
    "a100-80gb-1, 0.12.0": (
        ("a100-80gb-1", "vllm-0.12.0-cuda", "balanced"),
        {
            "shape": (1, 1),
            "args": {"async-scheduling": True},
            "env": {"VLLM_ATTENTION_BACKEND": "TRITON_ATTN"},
            "absent": ["kv-cache-dtype", MARLIN],
        },
    ),
    "a100-80gb-8, 0.32.0": (
        ("a100-80gb-8", "vllm-0.32.0-cuda", "max-throughput"),
        {"shape": (8, 1), "args": {"attention-backend": "TRITON_ATTN", "moe-backend": "marlin"}},
    ),
    "a100-40gb-8, 0.12.0": (("a100-40gb-8", "vllm-0.12.0-cuda", "max-throughput"), {"shape": (2, 4)}),
    **{
        f"mi300x-8, 0.14.1, {profile}": (
            ("mi300x-8", "vllm-0.14.1-rocm", profile),
            {
                "shape": (1, 8),
                "args": {
                    "gpu-memory-utilization": 0.95,
                    "block-size": 64,
                    "compilation-config": {"cudagraph_mode": "FULL_AND_PIECEWISE"},
                },
                "env": {
                    "VLLM_ROCM_USE_AITER": "1",
                    "VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION": "1",
                    "VLLM_ROCM_USE_AITER_MHA": "0",
                    "VLLM_ROCM_QUICK_REDUCE_QUANTIZATION": "INT4",
                },
                "absent": ["VLLM_USE_AITER_UNIFIED_ATTENTION", "disable-log-requests"],
                "note": "MEC firmware is below 177",
            },
        )
        for profile in PROFILES
    },
    "mi355x-8, 0.14.1": (
        ("mi355x-8", "vllm-0.14.1-rocm", "balanced"),
        {
            "args": {"async-scheduling": True},
            "env": {"VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION": "1"},
            "absent": ["VLLM_ROCM_USE_AITER_FUSED_MOE_A16W4", "VLLM_ROCM_QUICK_REDUCE_QUANTIZATION"],
            "note": "VLLM_ROCM_USE_AITER_FUSED_MOE_A16W4",
        },
    ),
    "mi355x-8, image": (
        ("mi355x-8", "rocm-open-mi355", "balanced"),
        {
            "install": "docker",
            "args": {"block-size": 64, "compilation-config": {"full_cuda_graph": True}},
            "env": {"VLLM_USE_AITER_TRITON_GEMM": "1", "VLLM_USE_AITER_UNIFIED_ATTENTION": "1"},
        },
    ),
    "mi325x-8, image": (
        ("mi325x-8", "rocm-open-mi300", "balanced"),
        {"install": "docker", "absent": ["VLLM_USE_AITER_TRITON_GEMM", "block-size"]},
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_must_come_out(catalog: Catalog, row: str) -> None:
    (host_class, engine, profile), wanted = ROWS[row]
    deployment = ask(catalog, host_class, engine, profile)
    if "shape" in wanted:
        assert (deployment.instances, deployment.tensor_parallel_size) == wanted["shape"]
    assert subset(wanted.get("args", {}), deployment.args)
    assert subset(wanted.get("env", {}), deployment.env)
    assert set(wanted.get("absent", [])) & {*deployment.args, *deployment.env} == set()
    assert wanted.get("note", "") in " ".join(deployment.notes)
    assert deployment.install == wanted.get("install", "wheel")


@pytest.mark.parametrize("host_class", ["h100-1", "h100-8", "h200-1", "h200-8"])
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("engine", ["vllm-0.10.1-cuda", "vllm-0.10.2-cuda", "vllm-0.12.0-cuda", "vllm-0.32.0-cuda"])
def test_marlin_on_hopper_only_where_the_regression_is(
    catalog: Catalog, host_class: str, profile: str, engine: str
) -> None:
    deployment = ask(catalog, host_class, engine, profile)
    wanted = engine == "vllm-0.12.0-cuda" and profile != "max-throughput"
    assert (MARLIN in deployment.env) is wanted
    if wanted:
        assert "small concurrency" in deployment.provenance[f"env.{MARLIN}"].why


@pytest.mark.parametrize(
    ("host_class", "engine", "more", "says"),
    [
        (
            "h100-2",
            "vllm-0.12.0-cuda",
            {"overrides": overridden(args={"gpu-memory-utilization": 0.95})},
            "out of memory",
        ),
        ("b200-8", "vllm-0.10.1-cuda", {"features": ("function-calling",)}, "needs 0.10.2"),
        ("b200-8", "vllm-0.10.1-cuda", {"overrides": overridden(env={MXFP8: "1"})}, "exactly one"),
        ("b200-8", "vllm-0.12.0-cuda", {"features": ("eagle3",), "model": SMALL}, "no EAGLE3 draft"),
        ("b200-8", "vllm-0.10.2-cuda", {"features": ("eagle3",)}, "needs 0.12"),
        ("a100-80gb-1", "vllm-0.12.0-cuda", {"features": ("eagle3",)}, "no recipe for EAGLE3"),
        ("r9700-1", "rocm-open-r9700", {}, "does not fit: 1 x 31.0 GiB x 0.9"),
        ("r9700-1", "vllm-0.14.1-rocm", {"model": SMALL}, "no recipe"),
        ("r9700-1", "rocm-open-mi300", {"model": SMALL}, "no recipe"),
        ("a100-40gb-1", "vllm-0.12.0-cuda", {}, "does not fit: 1 x 40.0 GiB x 0.9"),
        ("mi300x-8", "vllm-0.12.0-cuda", {}, "no recipe"),
        ("mi300x-8", "vllm-0.14.1-rocm", {"install": "docker"}, "cannot be installed"),
        ("rtx5090-1", None, {}, "still being worked on"),
        ("l40s-8", None, {}, "still being worked on"),
    ],
)
def test_refused(catalog: Catalog, host_class: str, engine: str | None, more: dict[str, Any], says: str) -> None:
    with pytest.raises(FleetError) as caught:
        ask(catalog, host_class, engine, **more)
    assert (caught.value.code, caught.value.exit_code) == ("refused", 2)
    assert says in caught.value.message


def test_two_h100_below_the_ceiling(catalog: Catalog) -> None:
    own = overridden(args={"gpu-memory-utilization": 0.94})
    assert ask(catalog, "h100-2", "vllm-0.12.0-cuda", overrides=own).args["gpu-memory-utilization"] == 0.94


def test_a_rule_by_tensor_parallel_follows_an_override(catalog: Catalog) -> None:
    own = overridden(args={"tensor-parallel-size": 2})
    deployment = ask(catalog, "h100-2", "vllm-0.12.0-cuda", "max-throughput", overrides=own)
    assert "gpu-memory-utilization" not in deployment.args
    assert deployment.args["max-num-batched-tokens"] == 8192


def test_the_20b_model_serves_on_a_radeon_through_its_image(catalog: Catalog) -> None:
    deployment = ask(catalog, "r9700-1", None, model=SMALL)
    assert (deployment.engine.id, deployment.install) == ("rocm-open-r9700", "docker")
    assert deployment.env["VLLM_USE_AITER_UNIFIED_ATTENTION"] == "1"
    assert "aiter#3294" in " ".join(deployment.notes)
    image = deployment.engine.docker
    assert image is not None
    line = render.docker_line(image, SMALL, deployment.args, deployment.env)
    assert "--ipc=host --network=host --device=/dev/kfd --device=/dev/dri" in line
    assert " rocm/vllm-dev:open-r9700-08052025 vllm serve openai/gpt-oss-20b " in line


def test_structured_output_and_async_scheduling(catalog: Catalog) -> None:
    old = ask(catalog, "h200-8", "vllm-0.10.2-cuda", features=("structured-output",))
    assert "async-scheduling" not in old.args
    assert "not compatible with structured output" in " ".join(old.notes)
    assert ask(catalog, "h200-8", "vllm-0.10.2-cuda").args["async-scheduling"] is True
    assert ask(catalog, "h200-8", "vllm-0.12.0-cuda", features=("structured-output",)).args["async-scheduling"] is True


def test_the_guides_benchmark_values_are_not_for_serving(catalog: Catalog) -> None:
    serving = ask(catalog, "b200-8", "vllm-0.12.0-cuda", "max-throughput")
    measured = ask(catalog, "b200-8", "vllm-0.12.0-cuda", "max-throughput", features=("benchmark",))
    extra = {key: value for key, value in measured.args.items() if serving.args.get(key) != value}
    assert extra == {"enable-prefix-caching": False, "stream-interval": 20}


def test_eagle3_is_the_guides_configuration(catalog: Catalog) -> None:
    deployment = ask(catalog, "h200-8", "vllm-0.12.0-cuda", features=("eagle3",))
    assert deployment.args["speculative-config"] == {
        "model": "nvidia/gpt-oss-120b-Eagle3-v2",
        "num_speculative_tokens": 3,
        "method": "eagle3",
        "draft_tensor_parallel_size": 1,
    }


@pytest.mark.parametrize(("engine", "kind"), [("vllm-0.12.0-cuda", str), ("vllm-0.32.0-cuda", dict)])
def test_a_mapping_is_json_text_where_a_mapping_is_fatal(catalog: Catalog, engine: str, kind: type) -> None:
    deployment = ask(catalog, "b200-8", engine)
    assert isinstance(deployment.record()["args"]["compilation-config"], dict)
    text = render.config_text(deployment.args, mappings_as_text=deployment.mappings_as_text)
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
    ],
    ids=[
        "declared and used by nothing",
        "of another accelerator",
        "no such parser",
        "no such choice",
        "no number",
        "no size",
        "nested key",
    ],
)
def test_names_and_values_are_proven(catalog: Catalog, args: Any, env: Any, says: str) -> None:
    with pytest.raises(FleetError) as caught:
        ask(catalog, "b200-8", "vllm-0.10.2-cuda", overrides=overridden(args=args, env=env))
    assert caught.value.code == "bad-input"
    assert says in caught.value.message


def test_the_utilization_of_the_release_counts(catalog: Catalog) -> None:
    old, new = (ask(catalog, "h200-1", f"vllm-{release}-cuda").fit for release in ("0.12.0", "0.32.0"))
    assert new.kv_cache_gib - old.kv_cache_gib == pytest.approx(0.02 * 140)


def test_an_fp8_cache_halves_a_sequence(catalog: Catalog) -> None:
    own = overridden(args={"kv-cache-dtype": None})
    half, full = (ask(catalog, "b200-1", "vllm-0.12.0-cuda", overrides=o).fit for o in (None, own))
    assert full.kv_per_sequence_gib == pytest.approx(2 * half.kv_per_sequence_gib)
    # 18 full layers of 131072 tokens and 18 of 128: keys and values of 8 heads of 64 in two bytes each.
    assert full.kv_per_sequence_gib == pytest.approx(2 * 8 * 64 * 2 * 18 * (131072 + 128) / 2**30)


@pytest.mark.parametrize(
    ("engine", "length", "sequences"),
    [
        # KV cache: 178 x 0.9 - 60.8 - 3 = 96.4 GiB. One sequence: 2 x 8 x 64 values x 18 x (length + 128) tokens.
        ("vllm-0.12.0-cuda", 32768, 170),
        ("vllm-0.12.0-cuda", 2048, 1024),
        # The older guide's 512 stays the most where more would fit; its cache is bf16.
        ("vllm-0.10.2-cuda", 2048, 512),
        ("vllm-0.10.2-cuda", 32768, 85),
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


def test_nothing_unverified_calls_itself_verified(catalog: Catalog) -> None:
    for name in (LARGE, SMALL):
        assert {entry.status for entry in catalog.models[name].support} == {"unverified"}
        assert set(catalog.models[name].scores) == {"gpqa", "aime25"}


def test_a_fleet_with_an_engine_that_is_not_locked_is_refused(catalog: Catalog, fleets: Any) -> None:
    path = fleets / "golden" / "fleet.yml"
    text = path.read_text(encoding="utf-8")
    for host_class, model, says in (("b200-8", LARGE, "is not locked yet"), ("r9700-1", SMALL, "as an image")):
        spec = yaml.safe_load(text)
        for pool in spec["pools"].values():
            pool |= {"host_class": host_class, "model": model}
            for key in ("engine", "overrides", "profile"):
                pool.pop(key, None)
        path.write_text(yaml.safe_dump(spec), encoding="utf-8")
        planned = plan.load(path.parent, catalog)
        with pytest.raises(FleetError) as caught:
            site.build(planned, catalog)
        assert caught.value.code == "refused"
        assert says in caught.value.message


def test_what_an_override_takes_away_has_no_origin(catalog: Catalog) -> None:
    own = overridden(args={"compilation-config": None})
    deployment = ask(catalog, "b200-8", "vllm-0.12.0-cuda", overrides=own)
    assert "compilation-config" not in deployment.args
    assert [key for key in deployment.provenance if "compilation" in key] == []


def test_the_image_of_a_release_takes_the_model_by_flag(catalog: Catalog) -> None:
    deployment = ask(catalog, "h200-8", "vllm-0.10.2-cuda", install="docker")
    image = deployment.engine.docker
    assert image is not None
    line = render.docker_line(image, LARGE, deployment.args, deployment.env)
    assert "--ipc=host --network=host --gpus all -e HF_TOKEN -e HF_HOME " in line
    assert " vllm/vllm-openai:v0.10.2 --model openai/gpt-oss-120b --async-scheduling " in line
    pinned = image.model_copy(update={"digest": "sha256:" + "0" * 64})
    assert f":v0.10.2@sha256:{'0' * 64} " in render.docker_line(pinned, LARGE, {}, {})


def test_what_is_not_locked_says_so(catalog: Catalog) -> None:
    assert "no lock or digest yet" in ask(catalog, "h200-8", None).notes[-1]
    assert resolve(catalog, Question("cpu-2", "vllm-fleet/lab-gpt-oss")).notes == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rules_of": "openai/gpt-oss-9b"}, "is no model with rules of its own"),
        ({"rules_of": SMALL}, "is no model with rules of its own"),
        ({"scores_source": None}, "has no scores_source"),
        ({"encodings": ["p50k_base.tiktoken"]}, "is not in recipes/encodings.yml"),
    ],
    ids=["rules of no model", "rules of a model that borrows", "scores of nobody", "no such encoding"],
)
def test_a_mutated_model_is_caught(catalog: Catalog, change: dict[str, Any], says: str) -> None:
    changed = catalog.models[SMALL].model_copy(update=change)
    mutated = dataclasses.replace(catalog, models={**catalog.models, SMALL: changed})
    assert any(says in fault.message for fault in crosscheck.faults(mutated))


def test_an_engine_of_no_fork_is_caught(catalog: Catalog) -> None:
    changed = catalog.engines["rocm-open-mi300"].model_copy(update={"fork": "rocm/vllm-dev:none"})
    mutated = dataclasses.replace(catalog, engines={**catalog.engines, changed.id: changed})
    fault = next(fault for fault in crosscheck.faults(mutated))
    assert "there is no fork 'rocm/vllm-dev:none' of 0.10.1" in fault.message
    assert fault.file == "recipes/engines/rocm-open-mi300.yml"


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"args": {"dtype": "half"}, "refuse": "refused by a test"},
        {"args": {"dtype": "half"}, "when": When(at_least={"max-num-seqs": 2})},
        {"args": {"tensor-parallel-size": 2}, "when": When(tensor_parallel=[2])},
    ],
)
def test_a_rule_that_contradicts_itself_is_no_rule(rule: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rule(why="a rule of a test", source="test", **rule)
