"""The batch that vLLM settles on, and the batches that it refuses when it starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.schema.memory import Batch, Defaults
from vllm_fleet.schema.recipe import ModelShape

_SEQUENCES = "max-num-seqs"
_BATCHED = "max-num-batched-tokens"
_LENGTH = "max-model-len"
_LONGER = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"


@dataclass(frozen=True)
class Settled:
    """What vLLM serves with.

    Attributes:
        sequences: at a time.
        batched_tokens: of one step.
    """

    sequences: int
    batched_tokens: int


def default_batch(defaults: Defaults, total_gib: float, gpu_name: str) -> Batch:
    """The batch that vLLM takes on a GPU where nothing is said.

    Args:
        defaults: vLLM's values.
        total_gib: the GPU's memory.
        gpu_name: the GPU's name, or a part of it.
    """
    return next(
        batch
        for batch in defaults.batches
        if total_gib >= batch.at_least_gib
        and (batch.without_gpu is None or batch.without_gpu.lower() not in gpu_name.lower())
    )


def settled(default: Batch, args: Mapping[str, Any], processes: int = 1) -> Settled:
    """The batch of an instance (``EngineArgs._set_default_max_num_seqs_and_batched_tokens_args`` in vLLM 0.32.0).

    Args:
        default: what the release takes by itself.
        args: vLLM's arguments.
        processes: by which the default is multiplied.

    Raises:
        FleetError: a value is not a whole number above 0.
    """
    for name in (_SEQUENCES, _BATCHED):
        value = args.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise FleetError(f"{name} is {value!r}", "give a whole number above 0", key=f"args.{name}")
    more = processes * (2 if args.get("performance-mode") == "throughput" else 1)
    tokens = args.get(_BATCHED, default.batched_tokens * more)
    sequences = args.get(_SEQUENCES, min(default.sequences * more, tokens))
    return Settled(sequences, tokens)


def refusals(
    shape: ModelShape, batch: Settled, args: Mapping[str, Any], env: Mapping[str, str]
) -> Iterator[FleetError]:
    """What vLLM would refuse when it starts (``SchedulerConfig.verify_max_model_len``, ``get_and_verify_max_len``).

    Args:
        shape: the model.
        batch: what vLLM settles on.
        args: vLLM's arguments.
        env: vLLM's environment.
    """
    if batch.batched_tokens < batch.sequences:
        yield FleetError(
            f"max-num-batched-tokens {batch.batched_tokens} is less than max-num-seqs {batch.sequences}: "
            "vLLM refuses that, since each sequence has a token in a step",
            "set a larger max-num-batched-tokens or a smaller max-num-seqs",
            key=f"args.{_SEQUENCES if _SEQUENCES in args else _BATCHED}",
            code=ErrorCode.REFUSED,
        )
    length = args.get(_LENGTH, shape.context_tokens)
    if length > shape.context_tokens and env.get(_LONGER) != "1":
        yield FleetError(
            f"max-model-len {length} is longer than the model's context, {shape.context_tokens} tokens: "
            "vLLM refuses that",
            f"set at most {shape.context_tokens}",
            key=f"args.{_LENGTH}",
            code=ErrorCode.REFUSED,
        )
    if args.get("enable-chunked-prefill") is False and batch.batched_tokens < length:
        yield FleetError(
            f"max-num-batched-tokens {batch.batched_tokens} is less than the {length} tokens of max-model-len, "
            "and without chunked prefill vLLM refuses that",
            "remove enable-chunked-prefill, or set a smaller max-model-len",
            key="args.enable-chunked-prefill",
            code=ErrorCode.REFUSED,
        )
