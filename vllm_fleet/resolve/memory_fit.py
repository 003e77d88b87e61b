"""Memory arithmetic: do the weights fit, and how many sequences fit beside them.

Figures are GiB (2**30 bytes). The reserve for activations and CUDA graphs is an estimate: the
engine measures the real values when it starts; this refuses only what cannot work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue.catalogue import SizedClass
from vllm_fleet.schema.recipe import ModelShape

#: vLLM's own default of --gpu-memory-utilization before 0.32, which takes 0.92.
DEFAULT_UTILIZATION = 0.9
#: Activations, CUDA graphs and the runtime of one device.
RESERVE_GIB = 3.0
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
_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Fit:
    """What one instance needs and what is left for its KV cache."""

    weights_gib: float
    kv_cache_gib: float
    kv_per_sequence_gib: float
    max_num_seqs: int

    def record(self) -> dict[str, float | int]:
        """The ``fit`` mapping of the JSON contract."""
        return {
            "weights_gib": round(self.weights_gib, 2),
            "kv_cache_gib": round(self.kv_cache_gib, 2),
            "kv_per_sequence_gib": round(self.kv_per_sequence_gib, 4),
            "max_num_seqs": self.max_num_seqs,
        }


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
        default_utilization: what the release takes when ``gpu-memory-utilization`` is not given.
    """

    args: Mapping[str, Any]
    env: Mapping[str, str]
    tensor_parallel: int
    default_utilization: float = DEFAULT_UTILIZATION


def fit(host: SizedClass, shape: ModelShape, instance: InstanceSettings) -> Fit:
    """The memory of one instance on a host.

    Args:
        host: the host's class.
        shape: the model.
        instance: the settings of the instance.

    Raises:
        FleetError: it cannot fit (code ``refused``), with the arithmetic; or a value is not a size (``bad-input``).
    """
    args, tensor_parallel = instance.args, instance.tensor_parallel
    tokens = _tokens(args, shape)
    per_sequence = kv_per_sequence_gib(shape, tokens, _value_bytes(args))
    if host.family.accelerator == "cpu":
        cache = _cpu_cache_gib(instance.env)
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
        return Fit(shape.weights_gib, cache, per_sequence, int(cache / per_sequence))
    utilization = float(args.get("gpu-memory-utilization", instance.default_utilization))
    if not 0 < utilization <= 1:
        key = "args.gpu-memory-utilization"
        raise FleetError(f"gpu-memory-utilization is {utilization}", "give a share above 0, at most 1", key=key)
    budget = tensor_parallel * host.family.memory_gib * utilization
    reserve = tensor_parallel * RESERVE_GIB
    cache = budget - shape.weights_gib - reserve
    sequences = int(cache / per_sequence)
    if sequences < 1:
        raise FleetError(
            f"does not fit: {tensor_parallel} x {host.family.memory_gib:.1f} GiB x {utilization} = {budget:.1f} GiB "
            f"- {shape.weights_gib:.1f} GiB of weights - {reserve:.1f} GiB reserve leaves {cache:.1f} GiB for "
            f"the KV cache, and one sequence of {tokens} tokens needs {per_sequence:.2f} GiB",
            "spread it over more devices, take a larger class or a smaller max-model-len",
            code=ErrorCode.REFUSED,
        )
    return Fit(shape.weights_gib, cache, per_sequence, sequences)
