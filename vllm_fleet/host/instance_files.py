"""Deployment -> the two data files of each instance, and what one ``vllm serve`` line would be."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet.host_plan import READINESS_OFFSET, HostPlan
from vllm_fleet.resolve.deployment import Deployment
from vllm_fleet.schema.recipe import DockerInstall

ENGINES = "/opt/vllm/engines"
ENCODINGS = "/var/lib/vllm/encodings"
MODELS = "/var/lib/vllm/models"
CACHE = "/var/cache/vllm"
#: The tag that a host gives to the image of a digest, as the guides do.
DEPLOY_TAG = "deploy"
#: What every container of vLLM gets, by hand or by the unit: its workers share memory, and it listens as the host.
RUN_OPTIONS = ("--ipc=host", "--network=host")
#: How long a start may take before it counts as failed: weights, compilation and CUDA graphs of a large model.
START_TIMEOUT_SECONDS = 3600


@dataclass(frozen=True)
class InstanceFiles:
    """One instance as text: the vLLM config, the environment, and what the process says it has loaded."""

    name: str
    port: int
    config: str
    env: str

    @property
    def loaded(self) -> str:
        """What the instance writes under /run when it has started with just these two files."""
        env_digest = self.env.rsplit('VLLM_FLEET_ENV_DIGEST="', 1)[1].split('"', 1)[0]
        return f"{sha256(self.config)} {env_digest}\n"


def sha256(text: str) -> str:
    """Digest of a text as it stands in a UTF-8 file."""
    return hashlib.sha256(text.encode()).hexdigest()


def model_folder(model: str) -> str:
    """A model's name as one word of a path."""
    return model.replace("/", "--")


def model_directory(model: str, revision: str) -> str:
    """Where a revision of a model stands on a host."""
    return f"{MODELS}/{model_folder(model)}/{revision}"


def config_text(args: Mapping[str, Any], *, mappings_as_text: bool = False) -> str:
    """A file for ``vllm serve --config``: dashed keys, mappings as mappings, no nulls.

    ``false`` is written as the flag's own ``no-`` form: vLLM drops ``enable-prefix-caching: false`` without a word.

    Args:
        args: the arguments.
        mappings_as_text: write a mapping as JSON text, for releases before 0.32, to which a mapping is fatal.

    Raises:
        FleetError: a key that vLLM would drop without a word (an underscore), or a null.
    """
    for key, value in args.items():
        if "_" in key or value is None:
            raise FleetError(f"{key!r}: {value!r} cannot stand in a vLLM config", "use dashed keys, and no null")
    written = {f"no-{key}" if value is False else key: True if value is False else value for key, value in args.items()}
    if mappings_as_text:
        written = {
            key: json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else value
            for key, value in written.items()
        }
    # The same text as from safe_dump, in a fifth of the time: a fleet has thousands of these files.
    return str(yaml.dump(written, Dumper=yaml.CSafeDumper, sort_keys=True, default_flow_style=False, width=4096))


def env_text(env: Mapping[str, str]) -> str:
    """A file for systemd's EnvironmentFile, each value quoted.

    Raises:
        FleetError: a value with a line break, which such a file cannot hold.
    """
    lines = []
    for name, value in sorted(env.items()):
        if "\n" in value or "\r" in value:
            raise FleetError(f"the environment variable {name!r} holds a line break", "take it out")
        escaped = "".join(f"\\{char}" if char in '\\"$`' else char for char in value)
        lines.append(f'{name}="{escaped}"\n')
    return "".join(lines)


def serving_env(deployment: Deployment, cache: str, name: str = "0") -> dict[str, str]:
    """The variables that every vLLM gets besides those of its recipe.

    Args:
        deployment: what the host runs.
        cache: the directory of what the engine and the libraries beside it compile.
        name: the instance; which devices are its own follows from it.
    """
    size = deployment.tensor_parallel_size
    devices = ",".join(str(int(name) * size + number) for number in range(size))
    return {
        # ROCm reads it too. Without it every instance would take the first devices.
        **({"CUDA_VISIBLE_DEVICES": devices} if deployment.instances > 1 else {}),
        "TIKTOKEN_ENCODINGS_BASE": ENCODINGS,
        # Triton, FlashInfer and the drivers' compilers put their caches below the home.
        "HOME": cache,
        "VLLM_CACHE_ROOT": f"{cache}/vllm",
    }


def instance_files(
    host: HostPlan,
    name: str,
    port: int,
    address: str,
    revision: str,
    unit_digest: str,
    cache: str,
    start: Mapping[str, str],
) -> InstanceFiles:
    """The two data files of one instance.

    Args:
        host: a serving host of the plan.
        name: the instance.
        port: where it listens.
        address: the address that it binds to.
        revision: the model's revision.
        unit_digest: digest of the unit and its program, so that another unit means another release.
        cache: the directory of what the engine and the libraries beside it compile.
        start: what the unit starts vLLM from, as the program that it runs reads it.
    """
    if host.deployment is None:
        raise FleetError("a gateway has no instances", host=host.name)
    deployment = host.deployment
    config = config_text(
        {
            **deployment.args,
            "model": model_directory(deployment.model, revision),
            "served-model-name": [deployment.model],
            "host": address,
            "port": port,
        },
        mappings_as_text=deployment.mappings_as_text,
    )
    env = env_text(
        {
            **deployment.env,
            **serving_env(deployment, cache, name),
            **start,
            "VLLM_FLEET_MODEL": deployment.model,
            "VLLM_FLEET_URL": f"http://{address}:{port}",
            "VLLM_FLEET_READINESS": f"{address}:{port + READINESS_OFFSET}",
            "VLLM_FLEET_START_TIMEOUT_SECONDS": str(START_TIMEOUT_SECONDS),
            "VLLM_FLEET_UNIT_DIGEST": unit_digest,
        }
    )
    return InstanceFiles(name, port, config, env + f'VLLM_FLEET_ENV_DIGEST="{sha256(env)}"\n')


def release_digest(files: Mapping[str, str]) -> str:
    """The name of a release: a digest of its files' names and contents."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content.encode())}\0".encode() + content.encode())
    return digest.hexdigest()[:16]


def serve_line(model: str, args: Mapping[str, Any], env: Mapping[str, str]) -> str:
    """The equivalent command: what a person would type to get the same server."""
    words = [f"{name}={shlex.quote(value)}" for name, value in sorted(env.items())]
    words += ["vllm", "serve", shlex.quote(model)]
    for key, value in sorted(args.items()):
        if value is True:
            words.append(f"--{key}")
        elif value is False:
            words.append(f"--no-{key}")
        elif isinstance(value, Mapping):
            words += [f"--{key}", shlex.quote(json.dumps(value, sort_keys=True))]
        elif isinstance(value, list):
            words += [f"--{key}", *(shlex.quote(str(item)) for item in value)]
        else:
            words += [f"--{key}", shlex.quote(str(value))]
    return " ".join(words)


def docker_line(image: DockerInstall, model: str, args: Mapping[str, Any], env: Mapping[str, str]) -> str:
    """The equivalent ``docker run``, with the caller's own model cache and, by its name alone, the caller's token.

    Args:
        image: the image. One with a digest runs under the tag :data:`DEPLOY_TAG`, which :func:`docker_lines` gives it.
        model: the model.
        args: vLLM's arguments.
        env: vLLM's environment; its values stand in the line, so it must hold no secret.
    """
    words = ["docker", "run", "--rm", *RUN_OPTIONS, *image.options]
    # The token by name only: docker takes its value from the caller, so that it stands in no list of processes.
    words += ["-e", "HF_TOKEN", "-e", 'HF_HOME="$HF_HOME"', "-v", '"${HF_HOME:?}:$HF_HOME"']
    for name, value in sorted(env.items()):
        words += ["-e", shlex.quote(f"{name}={value}")]
    serve = serve_line(model, args, {})
    # The entry point of an image that serves by itself takes the model by flag; that of 0.10 takes it in no other way.
    command = serve.replace("vllm serve ", "--model ", 1) if image.serves else serve
    return " ".join([*words, f"{image.image}:{DEPLOY_TAG if image.digest else image.tag}", command])


def docker_lines(image: DockerInstall, model: str, args: Mapping[str, Any], env: Mapping[str, str]) -> list[str]:
    """All that a person would type, in this order: pull by digest, tag what was pulled, run it under that tag.

    Without a digest there is nothing to pull that could not change, so only the ``docker run`` with the release's tag.
    Nothing at all for an image that no registry has.
    """
    if not image.published:
        return []
    run = docker_line(image, model, args, env)
    if image.digest is None:
        return [run]
    pinned = f"{image.image}@{image.digest}"
    return [f"docker pull {pinned}", f"docker tag {pinned} {image.image}:{DEPLOY_TAG}", run]


def docker_note(image: DockerInstall) -> str | None:
    """What to say of an image that is not pinned; None where it is."""
    if not image.published:
        return f"{image.image} is in no registry: a fleet that has built it names its own registry and the digest"
    if image.digest:
        return None
    return (
        f"{image.image}:{image.tag} has no digest yet: the tag can come to name another image, and a fleet "
        "refuses it without one"
    )
