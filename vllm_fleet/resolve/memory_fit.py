"""Whether an instance starts, and how many sequences its KV cache holds.

Figures are GiB (2**30 bytes). :mod:`vllm_fleet.resolve.device_memory` has the sum for a device. vLLM measures the real
values when it starts; this refuses what they would not let start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_fleet.base.errors import ErrorCode, FleetError, raise_all
from vllm_fleet.catalogue.catalogue import SizedClass
from vllm_fleet.resolve import batch_limits
from vllm_fleet.resolve.device_memory import Device, DeviceMemory, Served, estimate
from vllm_fleet.schema.memory import Memory
from vllm_fleet.schema.recipe import ModelShape

#: vLLM's own default of --gpu-memory-utilization before 0.32, which takes 0.92.
DEFAULT_UTILIZATION = 0.9
#: The three processes of a CPU server without weights and cache (resident, measured on 0.32).
CPU_PROCESSES_GIB = 4.0
#: vLLM's default of --max-num-seqs on devices with much memory, as the guide for 0.12.0 has it.
LARGEST_BATCH = 1024
LARGEST_BATCH_IS = f"vLLM's large default, {LARGEST_BATCH}"
#: The length of a sequence where neither fleet nor recipe says one: the 1024 tokens in and 1024 tokens out that the
#: guide measures throughput with, and its own example of a max-model-len that fits the load. Longer sequences are
#: still served: vLLM then runs fewer at a time.
ASSUMED_TOKENS = 2048
BATCH_SOURCE = "gpt-oss guide for 0.12.0, Balancing between Throughput and Latencies, and Benchmarking Performance"
_LENGTH = "args.max-model-len"
#: Tokens of a block of the KV cache, of which each sequence has at least one: vLLM's own block-size on a GPU.
_BLOCK_TOKENS = 16
_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Fit:
    """What one instance needs and what is left for its KV cache.

    Attributes:
        weights_gib: the files of the model and of its draft.
        kv_cache_gib: of the instance.
        kv_per_sequence_gib: of one sequence of full length.
        sequence_tokens: the full length, which is max-model-len or the model's context.
        max_num_seqs: sequences of full length that the cache holds at once.
        device: the memory of one device; None on a CPU.
    """

    weights_gib: float
    kv_cache_gib: float
    kv_per_sequence_gib: float
    sequence_tokens: int
    max_num_seqs: int
    device: DeviceMemory | None = None

    def record(self) -> dict[str, float | int]:
        """The ``fit`` mapping of the JSON contract."""
        return {
            "weights_gib": round(self.weights_gib, 2),
            "kv_cache_gib": round(self.kv_cache_gib, 2),
            "kv_per_sequence_gib": round(self.kv_per_sequence_gib, 4),
            "sequence_tokens": self.sequence_tokens,
            "max_num_seqs": self.max_num_seqs,
        }

    @property
    def text(self) -> str:
        """The instance in one line."""
        return (
            f"{self.weights_gib:.1f} GiB of files; the KV cache has {self.kv_cache_gib:.2f} GiB an instance and holds "
            f"{self.max_num_seqs} sequences of {self.sequence_tokens} tokens at once"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before the first start."""
        if self.device is None or self.kv_cache_gib - self.kv_per_sequence_gib > self.device.within:
            return ()
        return (
            f"the memory is tight: {self.kv_cache_gib:.2f} GiB are left for the KV cache, give or take "
            f"{self.device.within:.2f}, and one sequence of {self.sequence_tokens} tokens needs "
            f"{self.kv_per_sequence_gib:.2f}; a smaller max-model-len starts with more certainty",
        )


@dataclass(frozen=True)
class Batch:
    """How many sequences fill the KV cache; ``basis`` gives their length and its origin."""

    sequences: int
    basis: str


def batch(fit: Fit, shape: ModelShape, args: Mapping[str, Any], own_tokens: int | None) -> Batch:
    """The largest batch that does not exceed the KV cache of an instance.

    Args:
        fit: the memory of the instance.
        shape: the model.
        args: vLLM's arguments; a recipe's ``max-model-len`` is a ceiling, not a usual length.
        own_tokens: the ``max-model-len`` that the fleet itself has set; None: :data:`ASSUMED_TOKENS` is taken.
    """
    ceiling = _tokens(args, shape)
    tokens = own_tokens or min(ASSUMED_TOKENS, ceiling)
    reason = "the fleet's own max-model-len" if own_tokens else "assumed: 1024 in and 1024 out, as the guide measures"
    sequence_gib = kv_per_sequence_gib(shape, tokens, _value_bytes(args))
    return Batch(max(1, int(fit.kv_cache_gib / sequence_gib)), f"{tokens} tokens ({reason})")


def _tokens(args: Mapping[str, Any], shape: ModelShape) -> int:
    """The longest sequence.

    Raises:
        FleetError: ``max-model-len`` is not a number of tokens.
    """
    tokens = args.get("max-model-len", shape.context_tokens)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise FleetError(
            f"max-model-len is {tokens!r}", "give a whole number of tokens: the memory arithmetic uses it", key=_LENGTH
        )
    return tokens


def _cpu_cache_gib(env: Mapping[str, str]) -> float:
    text = env.get("VLLM_CPU_KVCACHE_SPACE", "4")
    try:
        cache = float(text)
    except ValueError:
        cache = math.nan
    if not cache > 0:
        raise FleetError(
            f"VLLM_CPU_KVCACHE_SPACE is {text!r}", "give a number of GiB", key="env.VLLM_CPU_KVCACHE_SPACE"
        )
    return cache


def _value_bytes(args: Mapping[str, Any]) -> int:
    return _BYTES.get(str(args.get("kv-cache-dtype", "auto")), 1)


def kv_per_sequence_gib(shape: ModelShape, tokens: int, bytes_per_value: int) -> float:
    """KV cache of one full sequence; a sliding-window layer keeps no more than its window."""
    full = (shape.layers - shape.sliding_layers) * tokens
    sliding = shape.sliding_layers * min(tokens, shape.sliding_window_tokens)
    return 2 * shape.kv_heads * shape.head_dim * bytes_per_value * (full + sliding) / 2**30


@dataclass(frozen=True)
class InstanceSettings:
    """The settings of one instance that its memory depends on.

    Attributes:
        args: vLLM's arguments.
        env: vLLM's environment.
        tensor_parallel: number of devices.
        release: of vLLM.
        default_utilization: what the release takes when ``gpu-memory-utilization`` is not given.
    """

    args: Mapping[str, Any]
    env: Mapping[str, str]
    tensor_parallel: int
    release: str
    default_utilization: float = DEFAULT_UTILIZATION


def fit(table: Memory, host: SizedClass, served: Served, instance: InstanceSettings) -> Fit:
    """The memory of one instance on a host.

    Args:
        table: what a device holds.
        host: the host's class.
        served: the model, and its draft's weights on one device.
        instance: the settings of the instance.

    Raises:
        FleetError: it cannot start (code ``refused``), with the arithmetic; or a value is not a size (``bad-input``).
    """
    tokens = _tokens(instance.args, served.shape)
    _refuse_batch(table, host, served.shape, instance)
    if host.family.accelerator == "cpu":
        return _fit_cpu(host, served.shape, instance, tokens)
    per_sequence = kv_per_sequence_gib(served.shape, tokens, _value_bytes(instance.args))
    device = _device(host, instance)
    memory = estimate(table, served, device)
    cache = memory.kv_cache * instance.tensor_parallel
    sequences = int(cache / per_sequence)
    found = Fit(served.files_gib, cache, per_sequence, tokens, sequences, memory)
    _refuse_memory(host, served.shape, device, found)
    return found


def _device(host: SizedClass, instance: InstanceSettings) -> Device:
    family = host.family
    device = Device(
        float(family.memory_gib),
        family.arch,
        instance.release,
        instance.tensor_parallel,
        family.facts.gpu_name or "",
        instance.default_utilization,
        instance.args,
        instance.env,
    )
    if not 0 < device.utilization <= 1:
        key = "args.gpu-memory-utilization"
        raise FleetError(f"gpu-memory-utilization is {device.utilization}", "give a share above 0, at most 1", key=key)
    return device


def _refuse_batch(table: Memory, host: SizedClass, shape: ModelShape, instance: InstanceSettings) -> None:
    family = host.family
    if family.accelerator == "cpu":
        batch = batch_limits.settled(table.defaults.cpu_batch, instance.args, instance.tensor_parallel)
    else:
        default = batch_limits.default_batch(table.defaults, float(family.memory_gib), family.facts.gpu_name or "")
        batch = batch_limits.settled(default, instance.args)
    raise_all(list(batch_limits.refusals(shape, batch, instance.args, instance.env)))


def _refuse_memory(host: SizedClass, shape: ModelShape, device: Device, found: Fit) -> None:
    memory = found.device
    assert memory  # noqa: S101 - of a GPU
    if memory.failure:
        raise FleetError(
            f"one {host.family.name} with {memory.failure.kernel} runs out of memory while it loads "
            f"({memory.failure.source})",
            f"set {memory.failure.instead}, or spread it over more devices",
            code=ErrorCode.REFUSED,
        )
    if found.max_num_seqs < 1:
        devices = device.tensor_parallel
        together = f"{devices} devices have {max(0.0, found.kv_cache_gib):.2f} GiB together, " if devices > 1 else ""
        raise FleetError(
            f"does not fit: a device of {host.id} has {memory.text()}; {together}and one sequence of "
            f"{found.sequence_tokens} tokens needs {found.kv_per_sequence_gib:.2f}",
            "set a smaller max-num-seqs or max-model-len or a larger gpu-memory-utilization, spread it over more "
            "devices, or take a larger class",
            code=ErrorCode.REFUSED,
        )
    if not memory.graphs_fit:
        raise FleetError(
            f"does not fit: the graphs of {host.id} take {memory.graphs:.2f} GiB beside the share of vLLM, and "
            f"gpu-memory-utilization {device.utilization} leaves {memory.total - memory.budget:.2f} GiB",
            "set a smaller gpu-memory-utilization or max-cudagraph-capture-size",
            code=ErrorCode.REFUSED,
        )
    asked = device.args.get("max-num-seqs", 1)
    least = kv_per_sequence_gib(shape, _BLOCK_TOKENS, _value_bytes(device.args))
    if asked * least > found.kv_cache_gib:
        raise FleetError(
            f"max-num-seqs {asked} is more than the KV cache has blocks for: {int(found.kv_cache_gib / least)} of "
            f"{_BLOCK_TOKENS} tokens",
            "set a smaller max-num-seqs",
            key="args.max-num-seqs",
            code=ErrorCode.REFUSED,
        )


def _fit_cpu(host: SizedClass, shape: ModelShape, instance: InstanceSettings, tokens: int) -> Fit:
    cache = _cpu_cache_gib(instance.env)
    per_sequence = kv_per_sequence_gib(shape, tokens, _value_bytes(instance.args))
    need = shape.weights_gib + cache + CPU_PROCESSES_GIB
    if need > host.family.memory_gib:
        raise FleetError(
            f"does not fit: {shape.weights_gib:.1f} GiB of weights + {cache:.1f} GiB of KV cache + "
            f"{CPU_PROCESSES_GIB:.1f} GiB for the processes > {host.family.memory_gib:.1f} GiB of {host.id}",
            "set a smaller VLLM_CPU_KVCACHE_SPACE or take a larger class",
            code=ErrorCode.REFUSED,
        )
    if cache < per_sequence:
        raise FleetError(
            f"does not fit: one sequence of {tokens} tokens needs {per_sequence:.2f} GiB of KV cache, "
            f"and there are {cache:.2f} GiB",
            "set a larger VLLM_CPU_KVCACHE_SPACE or a smaller max-model-len",
            code=ErrorCode.REFUSED,
        )
    return Fit(shape.weights_gib, cache, per_sequence, tokens, int(cache / per_sequence))
