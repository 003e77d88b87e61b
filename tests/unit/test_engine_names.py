"""The generated name manifests: what each release reads, row by row, and the form of the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.engines import manifest
from tools.engines.__main__ import names_dir
from tools.engines.releases import RELEASES

COLUMNS = ("0.10.1", "0.10.2", "0.12.0", "0.14.1", "0.32.0", "0.33.0")
# y: the release reads it, -: it does not occur. One column for each of COLUMNS.
ROWS = [
    ("env VLLM_USE_FLASHINFER_MXFP4_BF16_MOE", "- - - - - -"),
    ("env VLLM_USE_FLASHINFER_MXFP4_MOE", "- - - - - -"),
    ("env VLLM_USE_FLASHINFER_MOE_MXFP4_BF16", "y y y y - -"),
    ("env VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8", "y y y y - -"),
    ("env VLLM_FLASHINFER_ALLREDUCE_FUSION_THRESHOLDS_MB", "- y y y - -"),
    ("env VLLM_USE_AITER_UNIFIED_ATTENTION", "y y - - - -"),
    ("env VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION", "- - y y y y"),
    ("env VLLM_ROCM_USE_AITER_FUSED_MOE_A16W4", "- - - - - -"),
    ("env VLLM_USE_AITER_TRITON_FUSED_SPLIT_QKV_ROPE", "- - - - - -"),
    ("env VLLM_USE_AITER_TRITON_FUSED_ADD_RMSNORM_PAD", "- - - - - -"),
    ("env VLLM_USE_AITER_TRITON_GEMM", "- - - - - -"),
    ("env VLLM_ROCM_USE_AITER", "y y y y y y"),
    ("env VLLM_ROCM_USE_AITER_MHA", "y y y y y y"),
    ("env VLLM_ROCM_QUICK_REDUCE_QUANTIZATION", "y y y y y y"),
    ("env VLLM_MXFP4_USE_MARLIN", "y y y y - -"),
    ("env HSA_NO_SCRATCH_RECLAIM", "- - - - - -"),
    ("env TRITON_HIP_PRESHUFFLE_SCALES", "- - - - - -"),
    ("env TIKTOKEN_ENCODINGS_BASE", "- - - - - -"),
    ("env VLLM_API_KEY", "y y y y y y"),
    ("env VLLM_API_KEY_FILE", "- - - - - -"),
    ("env NOTIFY_SOCKET", "- - - - - -"),
    ("flags cuda-graph-sizes", "y y y - - -"),
    ("flags max-cudagraph-capture-size", "- - y y y y"),
    ("flags cudagraph-capture-sizes", "- - y y y y"),
    ("flags stream-interval", "- - y y y y"),
    ("flags structured-outputs-config", "- - y y y y"),
    ("flags disable-log-requests", "y y y y - -"),
    ("flags disable-log-request", "- - - - - -"),
    ("flags enable-log-requests", "y y y y y y"),
    ("flags attention-backend", "- - - y y y"),
    ("flags moe-backend", "- - - - y y"),
    ("flags kernel-config", "- - - - y y"),
    ("flags shutdown-timeout", "- - - - y y"),
    ("flags quantization-config", "- - - - y y"),
    ("flags async-scheduling", "y y y y y y"),
    ("flags config", "y y y y y y"),
    ("flags headless", "y y y y y y"),
    ("pass_config enable_fi_allreduce_fusion", "y y y - - -"),
    ("pass_config enable_noop", "y y y - - -"),
    ("pass_config fuse_allreduce_rms", "- - y y y y"),
    ("pass_config eliminate_noops", "- - y y y y"),
    ("compilation_config full_cuda_graph", "y y - - - -"),
    ("compilation_config cudagraph_mode", "y y y y y y"),
    ("compilation_config custom_ops", "y y y y y y"),
    ("speculative_config draft_tensor_parallel_size", "y y y y y y"),
    # Declared in the release's own table, and used by nothing in it: setting it does nothing there.
    ("env_unused VLLM_MXFP4_USE_MARLIN", "- y - - - -"),
    ("env_unused VLLM_FLASHINFER_ALLREDUCE_FUSION_THRESHOLDS_MB", "- - y y - -"),
    ("env_unused VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8", "- - - - - -"),
    ("env_unused VLLM_ROCM_USE_AITER", "- - - - - -"),
    # Read into a name that nothing reads further.
    ("env_dead_ends VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION", "- - - - y y"),
    ("env_dead_ends VLLM_ENABLE_FUSED_MOE_ACTIVATION_CHUNKING", "- - y - - -"),
    ("env_dead_ends VLLM_ROCM_USE_AITER", "- - - - - -"),
    ("tool_call_parsers openai", "- y y y y y"),
    ("reasoning_parsers GptOss", "y - - - - -"),
    ("reasoning_parsers openai_gptoss", "- y y y y y"),
]
# What a release does with a key that it does not know, and with values in a --config file.
RULES = [
    ("pass_config_extra", "ignore ignore ignore forbid forbid forbid"),
    ("compilation_config_extra", "ignore ignore ignore forbid forbid forbid"),
    ("speculative_config_extra", "ignore ignore ignore ignore forbid forbid"),
    ("config_file.mapping", "unusable unusable unusable unusable json json"),
    ("config_file.boolean_false", "dropped dropped dropped dropped dropped dropped"),
]
FLAGS = [
    ("0.10.1", "disable-log-requests", {"type": "bool", "default": True, "negatable": True, "deprecated": True}),
    ("0.12.0", "cuda-graph-sizes", {"type": "list", "items": "int", "default": None, "deprecated": True}),
    ("0.12.0", "gpu-memory-utilization", {"type": "float", "default": 0.9}),
    ("0.12.0", "stream-interval", {"type": "int", "default": 1}),
    ("0.14.1", "tensor-parallel-size", {"type": "int", "default": 1, "aliases": ["-tp"]}),
    ("0.14.1", "compilation-config", {"type": "json", "aliases": ["-cc"]}),
    ("0.32.0", "enable-prefix-caching", {"type": "bool", "default": None, "negatable": True}),
    ("0.32.0", "disable-log-stats", {"type": "bool", "default": False}),
    ("0.32.0", "shutdown-timeout", {"type": "int", "default": 0}),
    ("0.32.0-cpu", "hf-token", {"type": "str", "default": None, "bare": True}),
]


def read(name: str) -> dict[str, Any]:
    return yaml.load((names_dir() / f"{name}.yml").read_text(encoding="utf-8"), yaml.CSafeLoader)


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    return {release.id: read(release.id) for release in RELEASES}


@pytest.mark.parametrize(("row", "expected"), ROWS, ids=[row for row, _ in ROWS])
def test_what_the_releases_read(manifests: dict[str, dict[str, Any]], row: str, expected: str) -> None:
    key, name = row.split()
    found = ["y" if name in manifests[column][key] else "-" for column in COLUMNS]
    assert dict(zip(COLUMNS, found, strict=True)) == dict(zip(COLUMNS, expected.split(), strict=True))


@pytest.mark.parametrize(("rule", "expected"), RULES, ids=[rule for rule, _ in RULES])
def test_what_the_releases_do_with_the_unknown(manifests: dict[str, dict[str, Any]], rule: str, expected: str) -> None:
    key, _, part = rule.partition(".")
    values = [manifests[column][key] for column in COLUMNS]
    found = [value[part] if part else value for value in values]
    assert dict(zip(COLUMNS, found, strict=True)) == dict(zip(COLUMNS, expected.split(), strict=True))


@pytest.mark.parametrize(("release", "flag", "record"), FLAGS, ids=[f"{r} {f}" for r, f, _ in FLAGS])
def test_flags(manifests: dict[str, dict[str, Any]], release: str, flag: str, record: dict[str, Any]) -> None:
    assert manifests[release]["flags"][flag] == record


@pytest.mark.parametrize("release", RELEASES, ids=[release.id for release in RELEASES])
def test_form(manifests: dict[str, dict[str, Any]], release: Any) -> None:
    data = manifests[release.id]
    assert data["source"] == {"file": release.file, "sha256": release.sha256}
    assert data["covers"] == release.covers
    for key in ("flags", "env"):
        assert list(data[key]) == sorted(data[key])
    types = {record["type"] for record in data["flags"].values()}
    assert types == {"bool", "int", "float", "str", "json", "list", "enum"}
    for name, record in data["flags"].items():
        assert ("choices" in record) >= (record["type"] == "enum"), name
        assert ("items" in record) == (record["type"] == "list"), name
    # The file is what the generator writes for its own data: nobody edited it by hand.
    assert manifest.text(data) == (names_dir() / f"{release.id}.yml").read_text(encoding="utf-8")


def test_the_rocm_builds_are_marked_as_inherited(manifests: dict[str, dict[str, Any]]) -> None:
    rocm = {name: data["covers"]["rocm"] for name, data in manifests.items() if "rocm" in data["covers"]}
    assert set(rocm) == {"0.14.1", "0.32.0", "0.33.0"}
    assert all(reason.startswith("inherited:") for reason in rocm.values())


@pytest.mark.parametrize("name", read("beside")["env"])
def test_names_beside_vllm(name: str) -> None:
    entry = read("beside")["env"][name]
    assert set(entry) <= {"library", "accelerators", "source"}
    assert entry["library"]
    assert entry["source"]
    assert set(entry.get("accelerators", ["cuda"])) <= {"cuda", "rocm", "cpu"}


@pytest.mark.parametrize("image", read("forks")["forks"])
def test_forks_add_only_what_their_release_lacks(manifests: dict[str, dict[str, Any]], image: str) -> None:
    fork = read("forks")["forks"][image]
    inherited = manifests[fork["inherits"]]["env"]
    assert all(entry["source"] for entry in fork["env"].values())
    assert not set(fork["env"]) & (set(inherited) | set(read("beside")["env"]))


def test_no_file_without_a_release() -> None:
    known = {f"{release.id}.yml" for release in RELEASES} | {"beside.yml", "forks.yml"}
    assert {path.name for path in Path(names_dir()).iterdir()} == known


def test_the_keys_that_a_release_announces_to_go(manifests: dict[str, dict[str, Any]]) -> None:
    found = {name: data.get("pass_config_deprecated", []) for name, data in manifests.items()}
    assert {name for name, keys in found.items() if keys} == {"0.12.0"}
    assert (
        {"enable_fi_allreduce_fusion", "enable_noop"} <= set(found["0.12.0"]) < set(manifests["0.12.0"]["pass_config"])
    )
    assert "fi_allreduce_fusion_max_size_mb" not in found["0.12.0"]
