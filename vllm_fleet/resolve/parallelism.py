"""Refuses arguments that spread an instance over more processes, GPUs or hosts than the plan counts.

A host runs ``devices / tensor-parallel-size`` instances, and each sees its own devices only. vLLM multiplies the GPUs
of an instance by pipeline, data and prefill-context parallelism too (``ParallelConfig`` in vllm/config/parallel.py,
releases 0.10.1 to 0.32.0). Decode-context parallelism uses the GPUs of the tensor parallelism again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue.engine_names import EngineNames
from vllm_fleet.resolve.provenance import Origin, error_at

_WITHIN_ONE_HOST = "this project serves within one host, with tensor parallelism"
_USE_TENSOR_PARALLEL = "remove it; tensor-parallel-size and more hosts in the pool spread the load"
#: Flags -> what they do that the plan does not count. A value that is the release's default changes nothing.
SPREADING_FLAGS: Mapping[str, str] = {
    "pipeline-parallel-size": "multiplies the GPUs of an instance",
    "prefill-context-parallel-size": "multiplies the GPUs of an instance",
    "data-parallel-size": "multiplies the GPUs and processes of an instance",
    "data-parallel-size-local": "starts several engines in one instance",
    "data-parallel-address": "joins instances of several hosts",
    "data-parallel-backend": "joins instances of several hosts",
    "data-parallel-external-lb": "joins several instances to one",
    "data-parallel-hybrid-lb": "joins several instances to one",
    "data-parallel-multi-port-external-lb": "starts several engines in one instance",
    "data-parallel-rank": "joins several instances to one",
    "data-parallel-rpc-port": "joins instances of several hosts",
    "data-parallel-start-rank": "joins instances of several hosts",
    "data-parallel-supervisor-port": "starts several engines in one instance",
    "device-ids": "chooses GPUs, which the project does for each instance",
    "elastic-ep-max-dp-size": "changes the number of GPUs while the instance runs",
    "enable-elastic-ep": "changes the number of GPUs while the instance runs",
    "headless": "starts an instance without its API",
    "master-addr": "joins instances of several hosts",
    "master-port": "joins instances of several hosts",
    "nnodes": "spreads an instance over several hosts",
    "node-rank": "joins instances of several hosts",
}
#: What starts the processes of one instance on its own host.
_LOCAL_EXECUTORS = ("mp", "uni")
#: Variables with which a launcher tells vLLM of its other processes; vLLM reads some in place of the flags.
SPREADING_VARIABLES = frozenset(
    {
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "RANK",
        "VLLM_DP_MASTER_IP",
        "VLLM_DP_MASTER_PORT",
        "VLLM_DP_RANK",
        "VLLM_DP_RANK_LOCAL",
        "VLLM_DP_SIZE",
        "VLLM_RAY_BUNDLE_INDICES",
        "VLLM_RAY_PER_WORKER_GPUS",
        "WORLD_SIZE",
    }
)
#: Variables that choose GPUs: the project sets the first for each instance, and the others would choose again.
DEVICE_VARIABLES = frozenset({"CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"})


def parallelism_errors(
    names: EngineNames, args: Mapping[str, Any], env: Mapping[str, Any], provenance: Mapping[str, Origin]
) -> Iterator[FleetError]:
    """Each argument and variable that does what the plan does not count, with the place that sets it.

    Args:
        names: what the release reads.
        args: the final arguments.
        env: the final environment.
        provenance: the origin of each.
    """
    for key, message, hint in _refusals(names, args, env):
        yield error_at(provenance, key, message, hint, ErrorCode.REFUSED)


def _refusals(names: EngineNames, args: Mapping[str, Any], env: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, value in args.items():
        key = f"args.{name}"
        if name not in names.flags or value is None:
            continue
        if name in SPREADING_FLAGS and value != names.flags[name]["default"]:
            yield key, f"{name} {SPREADING_FLAGS[name]}: {_WITHIN_ONE_HOST}", _USE_TENSOR_PARALLEL
        elif name == "distributed-executor-backend" and value not in _LOCAL_EXECUTORS:
            yield key, f"{name} {value!r} starts processes elsewhere: {_WITHIN_ONE_HOST}", "remove it, or take 'mp'"
        elif name == "api-server-count" and value != 1:
            yield (
                key,
                f"{name} is {value!r}: an instance has one API process, which its watchdog and its metrics read",
                "remove it; more instances or hosts spread the load",
            )
        elif name == "decode-context-parallel-size":
            size = args.get("tensor-parallel-size", 1)
            if not isinstance(value, int) or value < 1 or size % value:
                yield key, f"{name} {value} does not divide the tensor-parallel-size, {size}", "choose a divisor"
    for name in env:
        if name in SPREADING_VARIABLES:
            yield f"env.{name}", f"{name} joins several processes to one: {_WITHIN_ONE_HOST}", "remove it"
        elif name in DEVICE_VARIABLES:
            yield f"env.{name}", f"{name} is set for each instance by the project", "remove it"
