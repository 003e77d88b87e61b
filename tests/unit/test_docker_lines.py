"""The docker lines of ``recipe``: what they mount, what they keep out of the line, and which image they run."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import app
from vllm_fleet.host import serve_command
from vllm_fleet.schema.recipe import DockerInstall

MODEL = "openai/gpt-oss-20b"
DIGEST = "sha256:" + "0" * 64


def image(digest: str | None = None) -> DockerInstall:
    return DockerInstall(image="vllm/vllm-openai", tag="v0.12.0", digest=digest, options=["--gpus", "all"], serves=True)


def words_of(line: str, tmp_path: Path, **env: str) -> list[str]:
    """What the shell makes of a line: each word that docker would get."""
    show = tmp_path / "docker"
    show.write_text('#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done\n')
    show.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    told = subprocess.run(["sh", "-c", line], env={"PATH": path, **env}, capture_output=True, text=True, check=True)
    return told.stdout.splitlines()


def test_the_model_cache_is_mounted_where_it_is(tmp_path: Path) -> None:
    words = words_of(
        serve_command.docker_line(image(), MODEL, {}, {}), tmp_path, HF_HOME="/big disk/hf", HF_TOKEN="hf_secret"
    )
    assert words[words.index("-v") + 1] == "/big disk/hf:/big disk/hf"
    assert "HF_HOME=/big disk/hf" in words
    assert "--ipc=host" in words


def test_the_token_stands_in_no_argument(tmp_path: Path) -> None:
    words = words_of(serve_command.docker_line(image(), MODEL, {}, {}), tmp_path, HF_HOME="/hf", HF_TOKEN="hf_secret")
    assert words[words.index("HF_TOKEN") - 1] == "-e"
    assert not any("hf_secret" in word for word in words)


def test_without_a_model_cache_the_line_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        words_of(serve_command.docker_line(image(), MODEL, {}, {}), tmp_path)
    assert "HF_HOME" in caught.value.stderr


def test_a_digest_is_pulled_tagged_and_run() -> None:
    pull, tag, run = serve_command.docker_lines(image(DIGEST), MODEL, {}, {})
    assert pull == f"docker pull vllm/vllm-openai@{DIGEST}"
    assert tag == f"docker tag vllm/vllm-openai@{DIGEST} vllm/vllm-openai:deploy"
    assert " vllm/vllm-openai:deploy --model openai/gpt-oss-20b" in run
    assert "v0.12.0" not in run
    assert serve_command.docker_note(image(DIGEST)) is None


def test_without_a_digest_the_release_runs_with_a_warning() -> None:
    (run,) = serve_command.docker_lines(image(), MODEL, {}, {})
    assert " vllm/vllm-openai:v0.12.0 --model openai/gpt-oss-20b" in run
    assert "a fleet refuses it" in (serve_command.docker_note(image()) or "")


@pytest.mark.parametrize(
    "engine", ["rocm-open-mi300", "rocm-open-mi355", "rocm-open-r9700", "vllm-0.14.1-rocm", "vllm-0.32.0-rocm"]
)
def test_a_rocm_image_gets_its_devices(catalog: Catalog, engine: str) -> None:
    docker = catalog.engines[engine].docker
    assert docker is not None
    words = shlex.split(serve_command.docker_line(docker, MODEL, {}, {}))
    for needed in ("--device=/dev/kfd", "--device=/dev/dri", "--group-add=video", "seccomp=unconfined", "--ipc=host"):
        assert needed in words


@pytest.mark.parametrize("install", [[], ["--install", "docker"]], ids=["wheel", "image"])
def test_recipe_prints_the_lines_and_the_note(install: list[str]) -> None:
    asked = ["recipe", "--host-class", "h200-8", "--model", MODEL, "--engine", "vllm-0.12.0-cuda", *install]
    data = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    text = CliRunner().invoke(app, asked).stdout
    assert data["docker"].startswith("docker run ")
    assert "has no digest yet" in data["docker_note"]
    assert data["docker"] in text
    assert f"note: {data['docker_note']}" in text


def test_a_release_for_rocm_runs_from_its_own_image_with_its_devices() -> None:
    asked = ["recipe", "--host-class", "mi300x-8", "--model", MODEL, "--engine", "vllm-0.14.1-rocm", "--json"]
    data = json.loads(CliRunner().invoke(app, asked).stdout)
    assert " --device=/dev/kfd --device=/dev/dri --group-add=video --cap-add=SYS_PTRACE " in data["docker"]
    assert " vllm/vllm-openai-rocm:v0.14.1 --model openai/gpt-oss-20b " in data["docker"]


def test_an_image_that_no_registry_has_gives_no_line() -> None:
    asked = ["recipe", "--host-class", "cpu-2", "--model", "vllm-fleet/lab-gpt-oss", "--json"]
    data = json.loads(CliRunner().invoke(app, asked).stdout)
    assert data["docker"] is None
    assert "is in no registry" in data["docker_note"]
