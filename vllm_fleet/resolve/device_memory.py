"""The memory of one GPU, term by term, as vLLM divides it when it starts: ``recipes/memory.yml`` has the numbers.

All figures are GiB (2**30 bytes) of one device. vLLM measures the real values at each start; tests compare this sum
with the starts that people have published.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_fleet.catalogue.catalogue import in_range
from vllm_fleet.resolve.batch_limits import Settled, default_batch, settled
from vllm_fleet.schema.memory import Failure, Memory, ModelMemory
from vllm_fleet.schema.recipe import ModelShape

_GIB = 2**30
#: Sizes up to 32 that performance-mode interactivity captures beside the usual ones.
_SMALL_SIZES = 25
#: The kernel of a device or a model that the table does not have: the weights are counted as the files have them.
AS_IN_FILES = "as in the files"


@dataclass(frozen=True)
class Served:
    """What a device serves.

    Attributes:
        model: the model's name.
        shape: the model's shape.
        draft_gib: the draft's weights on one device.
        draft_files_gib: the draft's files.
    """

    model: str
    shape: ModelShape
    draft_gib: float = 0.0
    draft_files_gib: float = 0.0

    @property
    def files_gib(self) -> float:
        """What must be on the host's disk."""
        return self.shape.weights_gib + self.draft_files_gib


@dataclass(frozen=True)
class Device:
    """A device, and what runs on it.

    Attributes:
        total: its memory, as torch reports it.
        arch: its architecture, as ``sm_90``.
        engine: the release.
        tensor_parallel: devices of the instance.
        gpu_name: its name, or a part of it.
        default_utilization: the share that the release takes without gpu-memory-utilization.
        args: vLLM's arguments.
        env: vLLM's environment.
    """

    total: float
    arch: str
    engine: str
    tensor_parallel: int = 1
    gpu_name: str = ""
    default_utilization: float = 0.9
    args: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def utilization(self) -> float:
        """The share that vLLM may take."""
        return float(self.args.get("gpu-memory-utilization", self.default_utilization))


@dataclass(frozen=True)
class DeviceMemory:
    """Where the memory of a device goes, in GiB.

    Attributes:
        kernel: the kernel of the experts.
        total: what the device has.
        budget: the share that vLLM may take.
        loaded: the weights.
        draft: the weights of the draft.
        activations: the largest step.
        other: CUDA or ROCm, and NCCL.
        graphs: captured graphs.
        graphs_in_budget: whether the release takes them from its share; otherwise they need what it leaves.
        kv_cache: what is left for the KV cache; below 0 where nothing is.
        within: how far ``kv_cache`` may be from what the device shows.
        failure: a public start of the same kind that ran out of memory although the sum leaves enough.
    """

    kernel: str
    total: float
    budget: float
    loaded: float
    draft: float
    activations: float
    other: float
    graphs: float
    graphs_in_budget: bool
    kv_cache: float
    within: float
    failure: Failure | None = None

    @property
    def graphs_fit(self) -> bool:
        """Whether the graphs have room where they are captured."""
        return self.graphs_in_budget or self.total - self.budget >= self.graphs

    def text(self) -> str:
        """The sum in one line."""
        draft = f" - {self.draft:.2f} draft" if self.draft else ""
        graphs = f" - {self.graphs:.2f} graphs" if self.graphs_in_budget else ""
        outside = "" if self.graphs_in_budget else f"; graphs take {self.graphs:.2f} GiB of what is left beside it"
        return (
            f"{self.budget:.2f} of {self.total:.2f} GiB - {self.loaded:.2f} weights ({self.kernel}){draft} - "
            f"{self.activations:.2f} activations - {self.other:.2f} runtime{graphs} = {self.kv_cache:.2f} GiB for the "
            f"KV cache, give or take {self.within:.2f}{outside}"
        )

    def record(self) -> dict[str, Any]:
        """The ``device_memory`` mapping of the JSON contract."""
        sizes = ("total", "budget", "loaded", "draft", "activations", "other", "graphs", "kv_cache", "within")
        return {
            "kernel": self.kernel,
            **{f"{name}_gib": round(getattr(self, name), 3) for name in sizes},
            "graphs_in_budget": self.graphs_in_budget,
        }


def estimate(table: Memory, served: Served, device: Device) -> DeviceMemory:
    """The memory of a device that serves a model.

    Args:
        table: the numbers.
        served: the model. What the table does not have is counted as its files have it.
        device: the device and its settings.

    Raises:
        FleetError: a batch size is not a whole number above 0.
    """
    parts = table.models.get(served.model)
    kernel = _kernel(table, device) if parts else None
    shape = parts or _of_files(table, served.shape)
    budget = device.total * device.utilization
    loaded, loaded_within = _loaded(table, served.model, kernel, device.tensor_parallel, shape)
    batch = settled(default_batch(table.defaults, device.total, device.gpu_name), device.args)
    activations = _activations(table, shape, batch)
    alone = device.tensor_parallel == 1
    other = table.other.one_device_gib if alone else table.other.more_devices_gib
    other_within = table.other.one_device_within_gib if alone else table.other.more_devices_within_gib
    graphs = 0.0 if device.args.get("enforce-eager") else _graphs(table, shape, device, batch)
    counts = in_range(device.engine, table.defaults.graphs_in_budget)
    left = budget - loaded - served.draft_gib - activations - other - (graphs if counts else 0.0)
    within = loaded_within + table.activations.within_gib + other_within
    return DeviceMemory(
        kernel or AS_IN_FILES,
        device.total,
        budget,
        loaded,
        served.draft_gib,
        activations,
        other,
        graphs,
        counts,
        left,
        within + (graphs * table.defaults.graphs_within_share if counts else 0.0),
        _failure(table, served.model, kernel, device),
    )


def _of_files(table: Memory, shape: ModelShape) -> ModelMemory:
    """The parts of a model that the table does not have: its files, and the widest of what the table has."""
    known = max(table.models.values(), key=lambda each: each.graph_gib)
    return known.model_copy(update={"experts_gib": shape.weights_gib, "dense_gib": 0.0})


def _failure(table: Memory, model: str, kernel: str | None, device: Device) -> Failure | None:
    for failure in table.failures:
        if (
            (failure.model, failure.kernel, failure.tensor_parallel) == (model, kernel, device.tensor_parallel)
            and device.arch in failure.arch
            and device.total < failure.below_gib
            and in_range(device.engine, failure.engine)
        ):
            return failure
    return None


def _kernel(table: Memory, device: Device) -> str | None:
    """The kernel of the experts: as the settings say, or as the release takes it."""
    asked = device.args.get("moe-backend")
    if asked in table.kernels:
        return str(asked)
    if device.env.get("VLLM_MXFP4_USE_MARLIN") == "1":
        return "marlin"
    for choice in table.choices:
        if device.arch in choice.arch and (choice.engine is None or in_range(device.engine, choice.engine)):
            return choice.kernel
    return None


def _loaded(
    table: Memory, model: str, kernel: str | None, tensor_parallel: int, shape: ModelMemory
) -> tuple[float, float]:
    """The weights on one device: as measured, or as computed and corrected by the nearest measurement; how far off."""
    measured = [entry for entry in table.loaded if (entry.model, entry.kernel) == (model, kernel)]
    for entry in measured:
        if entry.tensor_parallel == tensor_parallel:
            return entry.gib, entry.within_gib
    computed = _computed(table, shape, kernel, tensor_parallel)
    if measured:
        nearest = min(measured, key=lambda entry: abs(entry.tensor_parallel - tensor_parallel))
        computed *= nearest.gib / _computed(table, shape, kernel, nearest.tensor_parallel)
    return computed, computed * table.computed_within_share


def _computed(table: Memory, shape: ModelMemory, kernel: str | None, tensor_parallel: int) -> float:
    if kernel is None:
        return (shape.experts_gib + shape.dense_gib) / tensor_parallel
    pads = table.kernels[kernel]
    part = _padded(shape.intermediate / tensor_parallel, pads.intermediate)
    hidden = _padded(shape.hidden, pads.hidden)
    share = part * hidden / (shape.intermediate * shape.hidden)
    return shape.experts_gib * share + shape.dense_gib / tensor_parallel


def _padded(size: float, multiple: int) -> int:
    return math.ceil(size / multiple) * multiple


def _activations(table: Memory, shape: ModelMemory, batch: Settled) -> float:
    """The larger of the sampler's warm-up and of a full step of the layers."""
    numbers = table.activations
    sampler = numbers.bytes_per_logit * batch.sequences * shape.vocabulary / _GIB
    layers = numbers.base_gib + numbers.gib_per_1024_tokens * batch.batched_tokens / 1024
    return float(max(sampler, layers))


def _graphs(table: Memory, shape: ModelMemory, device: Device, batch: Settled) -> float:
    asked = device.args.get("max-cudagraph-capture-size", table.defaults.capture_size)
    largest = min(asked, batch.batched_tokens)
    # The sizes that vLLM captures: 1, 2, 4, each eighth up to 256, and each sixteenth above.
    sizes = 3 + min(largest, 256) // 8 + max(0, largest - 256) // 16
    if device.args.get("performance-mode") == "interactivity":
        sizes += _SMALL_SIZES
    compilation = device.args.get("compilation-config")
    own = compilation.get("cudagraph_capture_sizes") if isinstance(compilation, Mapping) else None
    if isinstance(own, list):
        sizes = len(own)
    return float(shape.graph_gib * sizes)
