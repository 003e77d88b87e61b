"""Deployment -> the commands that a person would type to get the same server: ``vllm serve``, ``docker run``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from vllm_fleet.schema.recipe import DockerInstall

#: The tag that a host gives to the image of a digest, as the guides do.
DEPLOY_TAG = "deploy"
#: What every container of vLLM gets, by hand or by the unit: its workers share memory, and it listens as the host.
RUN_OPTIONS = ("--ipc=host", "--network=host")


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
