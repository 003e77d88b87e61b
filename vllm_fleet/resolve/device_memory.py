"""The memory of one GPU, term by term, as vLLM divides it when it starts: ``recipes/memory.yml`` has the numbers.

All figures are GiB (2**30 bytes) of one device. vLLM measures the real values at each start; tests compare this sum
with the starts that people have published.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_fleet.catalogue.catalogue import Catalog, in_range
from vllm_fleet.resolve.deployment import Deployment
from vllm_fleet.schema.memory import Memory, ModelMemory

_GIB = 2**30


@dataclass(frozen=True)
class Device:
    """A device, and what runs on it.

    Attributes:
        total: its memory, as torch reports it.
        arch: its architecture, as ``sm_90``.
        engine: the release.
        tensor_parallel: devices of the instance.
        default_utilization: the share that the release takes without gpu-memory-utilization.
        is_a100: whether it is an A100, whose defaults are those of small devices.
        args: vLLM's arguments.
        env: vLLM's environment.
    """

    total: float
    arch: str
    engine: str
    tensor_parallel: int = 1
    is_a100: bool = False
    default_utilization: float = 0.9
    args: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DeviceMemory:
    """Where the memory of a device goes.

    Attributes:
        kernel: the kernel of the experts.
        budget: the share that vLLM may take.
        loaded: the weights.
        activations: the largest step.
        other: CUDA and NCCL.
        graphs: CUDA graphs.
        graphs_in_budget: whether the release takes them from its share; otherwise they need what it leaves.
        kv_cache: what is left for the KV cache; below 0 where nothing is.
    """

    kernel: str
    budget: float
    loaded: float
    activations: float
    other: float
    graphs: float
    graphs_in_budget: bool
    kv_cache: float

    def text(self) -> str:
        """The sum in one line."""
        graphs = f" - {self.graphs:.2f} graphs" if self.graphs_in_budget else ""
        outside = "" if self.graphs_in_budget else f"; graphs take {self.graphs:.2f} GiB beside it"
        return (
            f"{self.budget:.2f} GiB - {self.loaded:.2f} weights ({self.kernel}) - {self.activations:.2f} activations - "
            f"{self.other:.2f} CUDA{graphs} = {self.kv_cache:.2f} GiB for the KV cache{outside}"
        )


def of_deployment(catalog: Catalog, deployment: Deployment) -> DeviceMemory | None:
    """The memory of one device of a deployment; None as for :func:`estimate`.

    Args:
        catalog: the recipes.
        deployment: what is served.
    """
    family = catalog.host_class(deployment.host_class).family
    device = Device(
        float(family.memory_gib),
        family.arch,
        deployment.engine.release,
        deployment.tensor_parallel_size,
        family.name.startswith("a100"),
        float(catalog.names(deployment.engine).flags["gpu-memory-utilization"]["default"]),
        deployment.args,
        deployment.env,
    )
    return estimate(catalog.memory, deployment.model, device)


def estimate(table: Memory, model: str, device: Device) -> DeviceMemory | None:
    """The memory of a device that serves a model; None for models and devices that the table does not have.

    Args:
        table: the numbers.
        model: the model's name.
        device: the device and its settings.
    """
    shape = table.models.get(model)
    kernel = _kernel(table, device)
    if shape is None or kernel is None:
        return None
    utilization = float(device.args.get("gpu-memory-utilization", device.default_utilization))
    budget = device.total * utilization
    loaded = _loaded(table, model, kernel, device.tensor_parallel)
    activations = _activations(table, shape, device)
    other = table.other.one_device_gib if device.tensor_parallel == 1 else table.other.more_devices_gib
    graphs = 0.0 if device.args.get("enforce-eager") else _graphs(table, shape, device)
    counts = in_range(device.engine, table.defaults.graphs_in_budget)
    left = budget - loaded - activations - other - (graphs if counts else 0.0)
    return DeviceMemory(kernel, budget, loaded, activations, other, graphs, counts, left)


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


def _loaded(table: Memory, model: str, kernel: str, tensor_parallel: int) -> float:
    """The weights on one device: as measured, or as computed and corrected by the nearest measurement."""
    measured = [entry for entry in table.loaded if (entry.model, entry.kernel) == (model, kernel)]
    for entry in measured:
        if entry.tensor_parallel == tensor_parallel:
            return entry.gib
    computed = _computed(table, model, kernel, tensor_parallel)
    if not measured:
        return computed
    nearest = min(measured, key=lambda entry: abs(entry.tensor_parallel - tensor_parallel))
    return computed * nearest.gib / _computed(table, model, kernel, nearest.tensor_parallel)


def _computed(table: Memory, model: str, kernel: str, tensor_parallel: int) -> float:
    shape, pads = table.models[model], table.kernels[kernel]
    part = _padded(shape.intermediate / tensor_parallel, pads.intermediate)
    hidden = _padded(shape.hidden, pads.hidden)
    share = part * hidden / (shape.intermediate * shape.hidden)
    return shape.experts_gib * share + shape.dense_gib / tensor_parallel


def _padded(size: float, multiple: int) -> int:
    return math.ceil(size / multiple) * multiple


def _activations(table: Memory, shape: ModelMemory, device: Device) -> float:
    """The larger of the sampler's warm-up and of a full step of the layers."""
    defaults, numbers = table.defaults, table.activations
    is_large = device.total >= defaults.large_gib and not device.is_a100
    sequences = device.args.get("max-num-seqs", defaults.sequences_large if is_large else defaults.sequences)
    tokens = device.args.get(
        "max-num-batched-tokens", defaults.batched_tokens_large if is_large else defaults.batched_tokens
    )
    sampler = numbers.bytes_per_logit * sequences * shape.vocabulary / _GIB
    layers = numbers.base_gib + numbers.gib_per_1024_tokens * tokens / 1024
    return float(max(sampler, layers))


def _graphs(table: Memory, shape: ModelMemory, device: Device) -> float:
    largest = device.args.get("max-cudagraph-capture-size", table.defaults.capture_size)
    # The sizes that vLLM captures: 1, 2, 4, each eighth up to 256, and each sixteenth above.
    sizes = 3 + min(largest, 256) // 8 + max(0, largest - 256) // 16
    return float(shape.graph_gib * sizes)
