"""Deployment -> the commands that start the same server by hand: ``vllm serve``, ``docker run``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from vllm_fleet.schema.recipe import DockerInstall

#: The tag that a host gives to an image by digest, as in the guides.
DEPLOY_TAG = "deploy"
#: The options of every vLLM container: its workers share memory, and it uses the network of the host.
RUN_OPTIONS = ("--ipc=host", "--network=host")


def serve_line(model: str, args: Mapping[str, Any], env: Mapping[str, str]) -> str:
    """The ``vllm serve`` command for a deployment."""
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
    """The ``docker run`` command for a deployment, with the caller's model cache and, by name only, the caller's token.

    Args:
        image: the image. With a digest it runs under the tag :data:`DEPLOY_TAG`, which :func:`docker_lines` sets.
        model: the model.
        args: vLLM's arguments.
        env: vLLM's environment; the line contains its values, so it must not contain secrets.
    """
    words = ["docker", "run", "--rm", *RUN_OPTIONS, *image.options]
    # The token by name only: docker reads its value from the caller, so no list of processes shows it.
    words += ["-e", "HF_TOKEN", "-e", 'HF_HOME="$HF_HOME"', "-v", '"${HF_HOME:?}:$HF_HOME"']
    for name, value in sorted(env.items()):
        words += ["-e", shlex.quote(f"{name}={value}")]
    serve = serve_line(model, args, {})
    # The entry point of an image that serves takes the model by flag; that of 0.10 accepts only the flag.
    command = serve.replace("vllm serve ", "--model ", 1) if image.serves else serve
    return " ".join([*words, f"{image.image}:{DEPLOY_TAG if image.digest else image.tag}", command])


def docker_lines(image: DockerInstall, model: str, args: Mapping[str, Any], env: Mapping[str, str]) -> list[str]:
    """The commands in their order: pull by digest, tag, run under that tag.

    Without a digest it is only the ``docker run`` with the tag of the release. For an image that no registry has, the
    list is empty.
    """
    if not image.published:
        return []
    run = docker_line(image, model, args, env)
    if image.digest is None:
        return [run]
    pinned = f"{image.image}@{image.digest}"
    return [f"docker pull {pinned}", f"docker tag {pinned} {image.image}:{DEPLOY_TAG}", run]


def docker_note(image: DockerInstall) -> str | None:
    """A note about an image that is not pinned; None for a pinned one."""
    if not image.published:
        return f"{image.image} is in no registry: build it and give the fleet your registry and the digest"
    if image.digest:
        return None
    return (
        f"{image.image}:{image.tag} has no digest yet: the tag can change to another image, so a fleet refuses it "
        "without a digest"
    )
