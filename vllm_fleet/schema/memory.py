"""The strict record of ``recipes/memory.yml``: what a GPU holds while a model serves, each number with its source."""

from __future__ import annotations

from pydantic import Field

from vllm_fleet.schema.recipe import Strict


class ModelMemory(Strict):
    """The parts of a model's weights, in GiB, and what the rest of the arithmetic needs of it."""

    experts_gib: float = Field(gt=0)
    dense_gib: float = Field(ge=0)
    hidden: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    #: Of one CUDA graph.
    graph_gib: float = Field(ge=0)
    source: str = Field(min_length=3)


class Kernel(Strict):
    """How a kernel of the experts pads them: to multiples of these sizes."""

    intermediate: int = Field(gt=0)
    hidden: int = Field(gt=0)
    source: str = Field(min_length=3)


class Loaded(Strict):
    """What one device was seen to hold after the weights were loaded, in GiB."""

    model: str
    kernel: str
    tensor_parallel: int = Field(gt=0)
    gib: float = Field(gt=0)
    within_gib: float = Field(ge=0)
    source: str = Field(min_length=3)


class Choice(Strict):
    """The kernel that releases take by themselves on some architectures."""

    arch: list[str] = Field(min_length=1)
    engine: str | None = None
    kernel: str
    source: str = Field(min_length=3)


class Failure(Strict):
    """A start that is known to run out of memory although the sum leaves enough."""

    model: str
    kernel: str
    arch: list[str] = Field(min_length=1)
    engine: str
    tensor_parallel: int = Field(gt=0)
    #: Devices with less memory than this.
    below_gib: float = Field(gt=0)
    #: What to set in its place.
    instead: str = Field(min_length=3)
    source: str = Field(min_length=3)


class Activations(Strict):
    """What a step needs at its largest."""

    bytes_per_logit: float = Field(gt=0)
    base_gib: float = Field(ge=0)
    gib_per_1024_tokens: float = Field(ge=0)
    within_gib: float = Field(ge=0)
    source: str = Field(min_length=3)


class Other(Strict):
    """What CUDA and NCCL hold outside of torch, in GiB of one device."""

    one_device_gib: float = Field(ge=0)
    one_device_within_gib: float = Field(ge=0)
    more_devices_gib: float = Field(ge=0)
    more_devices_within_gib: float = Field(ge=0)
    source: str = Field(min_length=3)


class Batch(Strict):
    """The batch that vLLM takes on devices of a size."""

    at_least_gib: float = Field(ge=0)
    #: A part of the name of the GPUs for which this does not hold.
    without_gpu: str | None = None
    sequences: int = Field(gt=0)
    batched_tokens: int = Field(gt=0)


class Defaults(Strict):
    """vLLM's own values where none is given."""

    #: The first that holds; the last holds for every device.
    batches: list[Batch] = Field(min_length=1)
    #: Of one process on a CPU.
    cpu_batch: Batch
    capture_size: int = Field(gt=0)
    #: The releases that take the graphs from the share of gpu-memory-utilization.
    graphs_in_budget: str
    graphs_within_share: float = Field(ge=0)
    source: str = Field(min_length=3)


class Memory(Strict):
    """``recipes/memory.yml``."""

    models: dict[str, ModelMemory] = Field(min_length=1)
    kernels: dict[str, Kernel] = Field(min_length=1)
    loaded: list[Loaded]
    computed_within_share: float = Field(ge=0)
    choices: list[Choice] = Field(min_length=1)
    failures: list[Failure]
    activations: Activations
    other: Other
    defaults: Defaults
