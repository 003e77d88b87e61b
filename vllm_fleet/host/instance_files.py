"""Serving host -> the two data files of each instance: the vLLM config and the environment of the unit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from vllm_fleet.base.addresses import host_port
from vllm_fleet.base.digests import text_sha256
from vllm_fleet.base.errors import InvariantError
from vllm_fleet.fleet.host_plan import READINESS_OFFSET
from vllm_fleet.host import container, host_paths
from vllm_fleet.host.role_files import unit_digest
from vllm_fleet.host.serving_host import ServingHost
from vllm_fleet.resolve.deployment import Deployment

#: How long a start may take before it counts as failed: weights, compilation and CUDA graphs of a large model.
START_TIMEOUT_SECONDS = 3600
#: The processes of an instance are on one host, so they meet at its loopback; a recipe may set other values. On a host
#: whose name has its address, vLLM 0.32.0 for CPUs has 15 ports of its worker at that address without them, and all at
#: 127.0.0.1 with them (run on 2026-11-28). The rendezvous of PyTorch may listen on all addresses
#: (vllm-project/vllm#15987, NVIDIA/nccl#965), so the firewall closes these ports too.
LOOPBACK_ENV: Mapping[str, str] = {
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}


@dataclass(frozen=True)
class InstanceFiles:
    """The files of one instance: the vLLM config and the environment."""

    name: str
    port: int
    config: str
    env: str

    @property
    def loaded(self) -> str:
        """What the instance writes under /run after it has started with these two files."""
        env_digest = self.env.rsplit('FLEET_ENV_DIGEST="', 1)[1].split('"', 1)[0]
        return f"{text_sha256(self.config)} {env_digest}\n"


@dataclass(frozen=True)
class Release:
    """All data files of a host, which change together.

    Attributes:
        instances: the files of each instance.
    """

    instances: tuple[InstanceFiles, ...]

    @cached_property
    def files(self) -> Mapping[str, str]:
        """File name -> content, for all instances."""
        configs = {f"{instance.name}.yaml": instance.config for instance in self.instances}
        return configs | {f"{instance.name}.env": instance.env for instance in self.instances}

    @cached_property
    def digest(self) -> str:
        """The name of the release."""
        return release_digest(self.files)


def config_text(args: Mapping[str, Any], *, mappings_as_text: bool = False) -> str:
    """A file for ``vllm serve --config``: dashed keys, mappings as mappings, no nulls.

    ``false`` is written as the ``no-`` form of the flag: vLLM drops ``enable-prefix-caching: false`` silently.

    Args:
        args: the arguments.
        mappings_as_text: write a mapping as JSON text: releases before 0.32 fail on a mapping.

    Raises:
        InvariantError: a key that vLLM would drop without a word (an underscore), or a null. The check of names
            refuses the first, the merge of rules removes the second.
    """
    for key, value in args.items():
        if "_" in key or value is None:
            raise InvariantError(f"{key!r}: {value!r} cannot be in a vLLM config: it takes dashed keys and no null")
    written = {f"no-{key}" if value is False else key: True if value is False else value for key, value in args.items()}
    if mappings_as_text:
        written = {
            key: json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else value
            for key, value in written.items()
        }
    # The same text as safe_dump in a fifth of the time: a fleet has thousands of these files.
    return str(yaml.dump(written, Dumper=yaml.CSafeDumper, sort_keys=True, default_flow_style=False, width=4096))


def env_text(env: Mapping[str, str]) -> str:
    """A file for systemd's EnvironmentFile, each value quoted.

    Raises:
        InvariantError: a value with a line break, which such a file cannot hold and no schema accepts.
    """
    lines = []
    for name, value in sorted(env.items()):
        if "\n" in value or "\r" in value:
            raise InvariantError(f"the environment variable {name!r} holds a line break")
        escaped = "".join(f"\\{char}" if char in '\\"$`' else char for char in value)
        lines.append(f'{name}="{escaped}"\n')
    return "".join(lines)


def serving_env(deployment: Deployment, cache: str, name: str = "0") -> dict[str, str]:
    """The variables of every instance besides those of its recipe.

    Args:
        deployment: what the host runs.
        cache: the directory of the caches of the engine and its libraries.
        name: the number of the instance, which decides its devices.
    """
    size = deployment.tensor_parallel_size
    devices = ",".join(str(int(name) * size + number) for number in range(size))
    return {
        **{key: value for key, value in LOOPBACK_ENV.items() if key not in deployment.env},
        # ROCm reads it too. Without it every instance would use the first devices.
        **({"CUDA_VISIBLE_DEVICES": devices} if deployment.instances > 1 else {}),
        "TIKTOKEN_ENCODINGS_BASE": host_paths.ENCODINGS,
        # Triton, FlashInfer and the compilers of the drivers cache below the home.
        "HOME": cache,
        "VLLM_CACHE_ROOT": f"{cache}/vllm",
    }


def instance_files(host: ServingHost) -> Release:
    """The data files of a host: a config and an environment for each instance."""
    deployment, address = host.deployment, host.location.service_address
    start, unit = start_env(host), unit_digest(deployment.install)
    instances = []
    for name, port in host.plan.instances:
        config = config_text(
            {
                **deployment.args,
                "model": host.model_directory,
                # The probes of the host use the model's own name; the gateways lead only the others to it.
                "served-model-name": list(dict.fromkeys([*host.plan.names, deployment.model])),
                "host": address,
                "port": port,
            },
            mappings_as_text=deployment.mappings_as_text,
        )
        env = env_text(
            {
                **deployment.env,
                **serving_env(deployment, host.cache_directory, name),
                **start,
                "FLEET_MODEL": deployment.model,
                "FLEET_URL": f"http://{host_port(address, port)}",
                "FLEET_READINESS": host_port(address, port + READINESS_OFFSET),
                "FLEET_START_TIMEOUT_SECONDS": str(START_TIMEOUT_SECONDS),
                "FLEET_UNIT_DIGEST": unit,
                **({"FLEET_RESTARTED": host.plan.restarted} if host.plan.restarted else {}),
            }
        )
        env += f'FLEET_ENV_DIGEST="{text_sha256(env)}"\n'
        instances.append(InstanceFiles(name, port, config, env))
    return Release(tuple(instances))


def start_env(host: ServingHost) -> dict[str, str]:
    """The variables that tell the unit's program how to start vLLM: from an engine's directory or an image."""
    if host.image is None:
        return {"FLEET_ENGINE": host.engine_directory}
    names = serving_env(host.deployment, host.cache_directory)
    return container.image_env(host.image, host.deployment, host.model_tree, host.cache_directory, names)


def release_digest(files: Mapping[str, str]) -> str:
    """The name of a release: a digest of its files' names and contents."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content.encode())}\0".encode() + content.encode())
    return digest.hexdigest()[:16]
