"""The memory of a device against the starts that people have published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import app
from vllm_fleet.resolve.device_memory import Device, estimate
from vllm_fleet.resolve.memory_fit import kv_per_sequence_gib

FILE = Path(__file__).parents[1] / "fixtures" / "published_starts.yml"
STARTS: list[dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["starts"]


@pytest.mark.parametrize("start", STARTS, ids=[start["id"] for start in STARTS])
def test_the_sum_says_what_a_public_start_says(start: dict[str, Any], catalog: Catalog) -> None:
    args = start.get("args", {})
    found = estimate(catalog.memory, start["model"], Device(**start["device"], args=args, env=start.get("env", {})))
    assert found
    if "kv" in start:
        more, less = start["within"]
        assert start["kv"] - less <= found.kv_cache <= start["kv"] + more, found.text()
    shape = catalog.models[start["model"]].shape
    needed = kv_per_sequence_gib(shape, args.get("max-model-len", shape.context_tokens), 2)
    outside = start["device"]["total"] - found.budget
    fits = found.kv_cache >= needed and (found.graphs_in_budget or outside >= found.graphs)
    assert fits == (start["outcome"] == "started"), f"{found.text()}; {needed:.2f} GiB are needed"


def test_the_table_names_what_is_there(catalog: Catalog) -> None:
    table = catalog.memory
    assert set(table.models) < set(catalog.models)
    assert {entry.kernel for entry in (*table.loaded, *table.choices)} <= set(table.kernels)
    assert {entry.model for entry in table.loaded} <= set(table.models)
    for name, parts in table.models.items():
        assert parts.experts_gib + parts.dense_gib == pytest.approx(catalog.models[name].shape.weights_gib, abs=0.3)


def test_a_kernel_that_the_settings_name_goes_before_that_of_the_release(catalog: Catalog) -> None:
    def kernel(**more: Any) -> str:
        found = estimate(catalog.memory, "openai/gpt-oss-120b", Device(79.11, "sm_90", "0.32.0", **more))
        assert found
        return found.kernel

    assert kernel() == "triton"
    assert kernel(args={"moe-backend": "marlin"}) == "marlin"
    assert kernel(env={"VLLM_MXFP4_USE_MARLIN": "1"}) == "marlin"


def test_fewer_sequences_and_more_devices_leave_more(catalog: Catalog) -> None:
    def left(tensor_parallel: int, **args: Any) -> float:
        device = Device(
            79.11, "sm_90", "0.11.2", tensor_parallel, args={key.replace("_", "-"): v for key, v in args.items()}
        )
        found = estimate(catalog.memory, "openai/gpt-oss-120b", device)
        assert found
        return found.kv_cache

    assert left(1) < left(1, max_num_seqs=256) < left(1, max_num_seqs=64, max_num_batched_tokens=1024)
    assert left(1) < left(2) < left(4) < left(8)


def test_other_models_and_devices_have_no_sum(catalog: Catalog) -> None:
    assert estimate(catalog.memory, "vllm-fleet/lab-gpt-oss", Device(79.11, "sm_90", "0.32.0")) is None
    assert estimate(catalog.memory, "openai/gpt-oss-20b", Device(12, "x86_64", "0.32.0")) is None


def test_recipe_shows_the_sum() -> None:
    asked = ["recipe", "--host-class", "h100-1", "--model", "openai/gpt-oss-120b", "--engine", "vllm-0.10.2-cuda"]
    (line,) = [each for each in CliRunner().invoke(app, asked).stdout.splitlines() if each.startswith("one device: ")]
    assert "- 65.97 weights (marlin) - " in line
    shown = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)["device_memory"]
    parts = ("loaded", "activations", "other", "kv_cache")
    assert shown["budget"] == pytest.approx(sum(shown[part] for part in parts))
    lab = ["recipe", "--host-class", "cpu-2", "--model", "vllm-fleet/lab-gpt-oss", "--json"]
    assert json.loads(CliRunner().invoke(app, lab).stdout)["device_memory"] is None
