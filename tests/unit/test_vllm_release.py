"""``vllm-release``: what it reads in the log of a start."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections.abc import Mapping
from typing import Any

import pytest

from vllm_fleet.base import paths

FILE = paths.root() / "roles" / "vllm_service" / "files" / "vllm-release"
#: As vLLM 0.32.0 writes them.
GRAPHS = (
    "(Worker_TP{rank} pid=7) INFO [gpu_model_runner.py:6582] Graph capturing finished in {seconds} secs, took 0.61 GiB"
)
ENGINE = "INFO [core.py:396] init engine (profile, create kv cache, warmup model) took 61.20 s (compilation: 38.40 s)"
PLAIN = "(EngineCore pid=8) INFO [core.py:402] init engine (profile, create kv cache, warmup model) took 0.51 s"
KV = "INFO [kv_cache_utils.py:2327] CPU KV cache size: 1,525,201 tokens, Maximum concurrency for 2,048 tokens: 744.73x"


@pytest.fixture(scope="module")
def program() -> Any:
    loader = importlib.machinery.SourceFileLoader("vllm_release", str(FILE))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("INFO [default_loader.py:501] Loading weights took 0.04 seconds", {"weights_seconds": 0.04}),
        ("Model loading took 65.9 GiB memory and 44.210000 seconds", {"load_seconds": 44.21}),
        (ENGINE, {"engine_seconds": 61.2, "compilation_seconds": 38.4}),
        (PLAIN, {"engine_seconds": 0.51}),
        (GRAPHS.format(rank=0, seconds=14), {"graphs_seconds": 14}),
        (KV, {"kv_cache_tokens": 1525201}),
        ("Loading weights took 1.2.3 seconds", {}),
        ("Loading weights took nan seconds", {}),
        ("KV cache size: ,,, tokens", {"kv_cache_tokens": 0}),
    ],
)
def test_the_steps_of_a_start_are_read_from_its_log(program: Any, line: str, found: Mapping[str, float]) -> None:
    assert program.steps(["another line", line]) == found


def test_the_slowest_worker_counts(program: Any) -> None:
    lines = [GRAPHS.format(rank=rank, seconds=seconds) for rank, seconds in ((0, 14), (1, 17), (2, 12))]
    assert program.steps(lines) == {"graphs_seconds": 17}
