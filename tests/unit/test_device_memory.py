"""The memory of a device against the starts that people have published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import app
from vllm_fleet.resolve.device_memory import AS_IN_FILES, Device, DeviceMemory, Served, estimate
from vllm_fleet.resolve.memory_fit import kv_per_sequence_gib
from vllm_fleet.resolve.resolve import Question, resolve

FILE = Path(__file__).parents[1] / "fixtures" / "published_starts.yml"
STARTS: list[dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["starts"]


@pytest.mark.parametrize("start", STARTS, ids=[start["id"] for start in STARTS])
def test_the_sum_says_what_a_public_start_says(start: dict[str, Any], catalog: Catalog) -> None:
    args = start.get("args", {})
    shape = catalog.models[start["model"]].shape
    served = Served(start["model"], shape)
    found = estimate(catalog.memory, served, Device(**start["device"], args=args, env=start.get("env", {})))
    if "kv" in start:
        more, less = start["within"]
        assert start["kv"] - less <= found.kv_cache <= start["kv"] + more, found.text()
    needed = kv_per_sequence_gib(shape, args.get("max-model-len", shape.context_tokens), 2)
    together = found.kv_cache * start["device"].get("tensor_parallel", 1)
    fits = together >= needed and found.graphs_fit and not found.failure
    assert fits == (start["outcome"] == "started"), f"{found.text()}; {needed:.2f} GiB are needed"


def of(catalog: Catalog, model: str, device: Device) -> DeviceMemory:
    return estimate(catalog.memory, Served(model, catalog.models[model].shape), device)


def test_the_table_names_what_is_there(catalog: Catalog) -> None:
    table = catalog.memory
    assert set(table.models) < set(catalog.models)
    assert {entry.kernel for entry in (*table.loaded, *table.choices)} <= set(table.kernels)
    assert {entry.model for entry in table.loaded} <= set(table.models)
    for name, parts in table.models.items():
        assert parts.experts_gib + parts.dense_gib == pytest.approx(catalog.models[name].shape.weights_gib, abs=0.3)


def test_a_kernel_that_the_settings_name_goes_before_that_of_the_release(catalog: Catalog) -> None:
    def kernel(**more: Any) -> str:
        return of(catalog, "openai/gpt-oss-120b", Device(79.11, "sm_90", "0.32.0", **more)).kernel

    assert kernel() == "triton"
    assert kernel(args={"moe-backend": "marlin"}) == "marlin"
    assert kernel(env={"VLLM_MXFP4_USE_MARLIN": "1"}) == "marlin"


def test_fewer_sequences_and_more_devices_leave_more(catalog: Catalog) -> None:
    def left(tensor_parallel: int, **args: Any) -> float:
        device = Device(
            79.11, "sm_90", "0.11.2", tensor_parallel, args={key.replace("_", "-"): v for key, v in args.items()}
        )
        return of(catalog, "openai/gpt-oss-120b", device).kv_cache

    assert left(1) < left(1, max_num_seqs=256) < left(1, max_num_seqs=64, max_num_batched_tokens=1024)
    assert left(1) < left(2) < left(4) < left(8)


def test_what_the_table_does_not_have_is_counted_as_its_files_have_it(catalog: Catalog) -> None:
    known = catalog.models["openai/gpt-oss-120b"].shape
    for found in (
        estimate(catalog.memory, Served("somewhere/else", known), Device(190, "sm_90", "0.32.0", 2)),
        of(catalog, "openai/gpt-oss-120b", Device(190, "sm_130", "0.32.0", 2)),
    ):
        assert found.kernel == AS_IN_FILES
        assert found.loaded == pytest.approx(known.weights_gib / 2, rel=0.01)
        assert found.within > found.loaded * 0.05


def test_a_draft_takes_its_place_on_each_device(catalog: Catalog) -> None:
    device = Device(178, "sm_100", "0.32.0")
    shape = catalog.models["openai/gpt-oss-120b"].shape
    with_draft = estimate(catalog.memory, Served("openai/gpt-oss-120b", shape, 2.6), device)
    assert with_draft.kv_cache == pytest.approx(of(catalog, "openai/gpt-oss-120b", device).kv_cache - 2.6)
    assert "- 2.60 draft -" in with_draft.text()


ASKED = ["recipe", "--host-class", "h100-1", "--model", "openai/gpt-oss-120b", "--engine", "vllm-0.10.2-cuda"]


def test_recipe_shows_the_sum() -> None:
    lines = CliRunner().invoke(app, ASKED).stdout.splitlines()
    (line,) = [each for each in lines if each.startswith("one device: ")]
    assert "- 65.97 weights (marlin) - " in line
    assert [each for each in lines if each.startswith("memory: ") and "sequences of 131072 tokens at once" in each]
    shown = json.loads(CliRunner().invoke(app, [*ASKED, "--json"]).stdout)
    memory = shown["device_memory"]
    parts = ("loaded", "draft", "activations", "other", "kv_cache")
    assert memory["budget_gib"] == pytest.approx(sum(memory[f"{part}_gib"] for part in parts), abs=0.01)
    assert shown["fit"]["sequence_tokens"] == 131072
    lab = ["recipe", "--host-class", "cpu-2", "--model", "vllm-fleet/lab-gpt-oss", "--json"]
    assert json.loads(CliRunner().invoke(app, lab).stdout)["device_memory"] is None


def refused(host_class: str, engine: str, *overrides: str, model: str = "openai/gpt-oss-120b") -> str:
    asked = ["recipe", "--host-class", host_class, "--model", model, "--engine", engine]
    done = CliRunner().invoke(app, [*asked, *(word for each in overrides for word in ("--override", each))])
    assert isinstance(done.exception, FleetError), done.output
    return done.exception.message


@pytest.mark.parametrize(
    ("host_class", "engine", "overrides", "says"),
    [
        # The guide's own line for one H100, without a batch: vllm#27508.
        ("h100-1", "vllm-0.10.2-cuda", ("max-num-seqs=1024",), "one sequence of 131072 tokens needs 4.50"),
        ("h100-1", "vllm-0.12.0-cuda", ("max-num-seqs=1000",), "one sequence of 131072 tokens needs 4.50"),
        ("h100-1", "vllm-0.32.0-cuda", ("moe-backend=triton",), "vllm#33155"),
        ("a100-80gb-1", "vllm-0.12.0-cuda", ("max-model-len=131072",), "one sequence of 131072 tokens needs 4.50"),
        ("b200-1", "vllm-0.12.0-cuda", ("max-model-len=262144",), "longer than the model's context, 131072 tokens"),
        ("b200-1", "vllm-0.12.0-cuda", ("max-num-seqs=9000",), "max-num-batched-tokens 8192 is less than"),
        (
            "h100-8",
            "vllm-0.12.0-cuda",
            ("max-num-batched-tokens=64", "max-num-seqs=128"),
            "max-num-batched-tokens 64 is less than max-num-seqs 128",
        ),
        (
            "h200-1",
            "vllm-0.12.0-cuda",
            ("enable-chunked-prefill=false",),
            "less than the 131072 tokens of max-model-len",
        ),
        ("h200-1", "vllm-0.12.0-cuda", ("gpu-memory-utilization=0.995",), "beside the share of vLLM"),
        (
            "h200-1",
            "vllm-0.12.0-cuda",
            ("max-num-seqs=99999", "max-num-batched-tokens=100000", "gpu-memory-utilization=0.97"),
            "does not fit",
        ),
        ("b200-1", "vllm-0.12.0-cuda", ("max-num-seqs=many",), "'max-num-seqs' is 'many'"),
        ("b200-1", "vllm-0.12.0-cuda", ("data-parallel-size=2",), "data-parallel-size multiplies"),
        ("b200-1", "vllm-0.12.0-cuda", ("nnodes=2",), "nnodes"),
    ],
)
def test_what_vllm_refuses_when_it_starts_is_refused_before(
    host_class: str, engine: str, overrides: tuple[str, ...], says: str
) -> None:
    assert says in refused(host_class, engine, *overrides)


def test_a_cpu_has_its_own_batch() -> None:
    said = refused("xeon-16", "vllm-0.32.0-cpu", "max-num-seqs=4096", model="openai/gpt-oss-20b")
    assert "max-num-batched-tokens 2048 is less than max-num-seqs 4096" in said


@pytest.mark.parametrize("profile", ["max-throughput", "balanced", "min-latency"])
@pytest.mark.parametrize("engine", ["vllm-0.10.1-cuda", "vllm-0.10.2-cuda", "vllm-0.12.0-cuda", "vllm-0.32.0-cuda"])
@pytest.mark.parametrize("host_class", ["h100-1", "a100-80gb-1", "a100-40gb-2"])
def test_eighty_gigabytes_get_the_settings_with_which_they_start(
    catalog: Catalog, host_class: str, engine: str, profile: Any
) -> None:
    found = resolve(catalog, Question(host_class, "openai/gpt-oss-120b", profile, engine))
    assert found.fit.max_num_seqs >= 1
    assert found.args["max-num-seqs"] <= 128
    memory = found.fit.device
    assert memory
    assert memory.kernel == "marlin"
    # Where an error of the sum could keep it from starting, the recipe says so.
    tight = found.fit.kv_cache_gib - found.fit.kv_per_sequence_gib <= memory.within
    assert tight == any("the memory is tight" in note for note in found.notes)
    assert not (tight and host_class == "h100-1")


def test_the_plan_shows_the_sum_of_each_kind_of_host_once(fleets: Path) -> None:
    said = CliRunner().invoke(app, ["plan", "--fleet", "two-clouds"]).output
    lines = [line for line in " ".join(said.split()).split("memory: ")[1:] if "a device has" in line]
    assert sorted(line.partition(",")[0] for line in lines) == ["b200-8", "h100-8"]
    assert "for the KV cache, give or take" in lines[0]
