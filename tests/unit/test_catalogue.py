"""What the catalogue must give for the systems of the two guides: one id for each row."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.host import serve_command
from vllm_fleet.resolve.resolve import Deployment, Question, resolve
from vllm_fleet.schema.fleet import Overrides

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
        {"shape": (4, 2), "absent": [MARLIN, "gpu-memory-utilization"]},
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
        ("b200-8", "vllm-0.12.0-cuda", {"features": ("eagle3",), "model": SMALL}, "is used with 0.32 or newer"),
        ("b200-8", "vllm-0.10.2-cuda", {"features": ("eagle3",)}, "needs 0.12"),
        ("a100-80gb-1", "vllm-0.12.0-cuda", {"features": ("eagle3",)}, "no recipe for EAGLE3"),
        ("r9700-1", "rocm-open-r9700", {}, "does not fit: a device of r9700-1 has 27.90 of 31.00 GiB"),
        ("r9700-1", "vllm-0.14.1-rocm", {"model": SMALL}, "no recipe"),
        ("r9700-1", "rocm-open-mi300", {"model": SMALL}, "no recipe"),
        ("a100-40gb-1", "vllm-0.12.0-cuda", {}, "does not fit: a device of a100-40gb-1 has 35.10 of 39.00 GiB"),
        ("mi300x-8", "vllm-0.12.0-cuda", {}, "no recipe"),
        ("r9700-1", "rocm-open-r9700", {"install": "wheel", "model": SMALL}, "cannot be installed"),
        ("rtx5090-1", None, {}, "no public start of the 120b model on this device was found"),
        ("gb10-1", None, {}, "Marlin filled 118 GB"),
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
    deployment = ask(catalog, "r9700-1", "rocm-open-r9700", model=SMALL)
    assert (deployment.engine.id, deployment.install) == ("rocm-open-r9700", "docker")
    assert deployment.env["VLLM_USE_AITER_UNIFIED_ATTENTION"] == "1"
    assert "aiter#3294" in " ".join(deployment.notes)
    image = deployment.engine.docker
    assert image is not None
    line = serve_command.docker_line(image, SMALL, deployment.args, deployment.env)
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


def test_the_image_of_a_release_takes_the_model_by_flag(catalog: Catalog) -> None:
    deployment = ask(catalog, "h200-8", "vllm-0.10.2-cuda", install="docker")
    image = deployment.engine.docker
    assert image is not None
    line = serve_command.docker_line(image, LARGE, deployment.args, deployment.env)
    assert "--ipc=host --network=host --gpus all -e HF_TOKEN " in line
    assert " vllm/vllm-openai:v0.10.2 --model openai/gpt-oss-120b --async-scheduling " in line
