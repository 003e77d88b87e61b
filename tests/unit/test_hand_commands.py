"""``vllm-fleet recipe``: the guides' commands, and overrides from the command line."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hanging import HANGING_SECONDS
from stand_in_origin import Origin, serving
from typer.testing import CliRunner

from vllm_fleet.base.errors import FleetError
from vllm_fleet.cli import app

ASKED = ["recipe", "--host-class", "h100-8", "--model", "openai/gpt-oss-120b"]


def told(*options: str) -> list[str]:
    done = CliRunner().invoke(app, [*ASKED, *options])
    assert done.exit_code == 0, done.exception
    return done.stdout.splitlines()


def command(lines: list[str]) -> list[str]:
    """The words of the last line, without comments."""
    return shlex.split(lines[-1], comments=True)


@pytest.mark.parametrize(("options", "at_once"), [((), 128), (("--override", "max-num-seqs=64"), 64)])
def test_the_benchmark_asks_for_as_much_as_the_server_takes(options: tuple[str, ...], at_once: int) -> None:
    """Guide 0.12, Benchmarking Performance: concurrency as max-num-seqs, five times as many prompts or more."""
    words = command(told("--show", "bench", *options))
    assert words[:3] == ["vllm", "bench", "serve"]
    given = dict(itertools.pairwise(words))
    assert (given["--max-concurrency"], given["--num-prompts"]) == (str(at_once), str(5 * at_once))
    assert (given["--random-input-len"], given["--random-output-len"]) == ("1024", "1024")
    assert "--ignore-eos" in words
    assert "--trust-remote-code" not in words  # the guide has it; the model needs no code of its own


def test_the_evaluation_has_the_published_scores_beside_it() -> None:
    lines = told("--show", "eval")
    assert "# gpqa: low 65.3, medium 72.4, high 79.4" in lines
    assert [line.partition("--eval ")[2].split()[0] for line in lines if "gpt_oss.evals" in line] == ["gpqa", "aime25"]


def test_the_download_is_of_the_revision_of_the_recipe_and_of_the_draft_too() -> None:
    lines = told("--show", "download", "--feature", "eagle3")
    assert "--revision b5c939de8f754692c1647ca79fbf85e8c1e70f8a" in lines[1]
    assert "--exclude 'original/*'" in lines[1]
    assert lines[2].startswith("hf download nvidia/gpt-oss-120b-Eagle3")
    assert "HF_HUB_OFFLINE=1" in lines[0]


def test_the_download_is_taken_by_the_hub_s_own_program(tmp_path: Path) -> None:
    """The line that is printed, run by huggingface_hub against a stand-in of the hub."""
    words = shlex.split(told("--show", "download")[1])
    revision = words[words.index("--revision") + 1]
    files = {"config.json": b"{}", "model-1.safetensors": b"w" * 5000, "original/model.pt": b"x", "metal/m.bin": b"y"}
    with serving(Origin(models={"openai/gpt-oss-120b": {revision: files}})) as origin:
        environment = {**os.environ, "HF_ENDPOINT": origin.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        environment.pop("HF_HUB_OFFLINE", None)
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=HANGING_SECONDS)
    assert done.returncode == 0, done.stderr
    (snapshot,) = (tmp_path / "hub" / "models--openai--gpt-oss-120b" / "snapshots").iterdir()
    assert snapshot.name == revision
    assert {path.name: path.read_bytes() for path in snapshot.rglob("*") if path.is_file()} == {
        name: files[name] for name in ("config.json", "model-1.safetensors")
    }


def test_the_tools_and_the_server_are_shown_alone() -> None:
    assert command(told("--show", "tools"))[-2:] == ["--tool-server", "HOST-1:PORT-1,HOST-2:PORT-2"]
    (line,) = told("--show", "serve")
    assert "vllm serve openai/gpt-oss-120b" in line
    docker = told("--show", "docker")
    assert docker[-1].startswith("docker run ")
    # HF_HUB_OFFLINE=1 is in the line, so the download stands before it.
    assert "HF_HUB_OFFLINE=1" in docker[-1]
    assert docker[1] == told("--show", "download")[1]


def test_json_has_all_of_them() -> None:
    shown = json.loads("\n".join(told("--json")))
    assert set(shown["commands"]) == {"bench", "eval", "download", "tools"}


@pytest.mark.parametrize(
    ("text", "args", "env"),
    [
        ("max-num-seqs=64", {"max-num-seqs": 64}, {}),
        ("args.max-num-seqs=64", {"max-num-seqs": 64}, {}),
        ("compilation-config.cudagraph_mode=FULL", {"compilation-config": {"cudagraph_mode": "FULL"}}, {}),
        ('compilation-config={"cudagraph_mode": "FULL"}', {"compilation-config": {"cudagraph_mode": "FULL"}}, {}),
        ("VLLM_LOGGING_LEVEL=DEBUG", {}, {"VLLM_LOGGING_LEVEL": "DEBUG"}),
        ("enable-prefix-caching=false", {"enable-prefix-caching": False}, {}),
    ],
)
def test_an_override_is_that_of_a_fleet(text: str, args: dict[str, Any], env: dict[str, str]) -> None:
    shown = json.loads("\n".join(told("--json", "--override", text)))
    assert {key: shown["args"][key] for key in args} == args
    assert {key: shown["env"][key] for key in env} == env


def test_null_takes_a_value_of_the_recipe_away() -> None:
    assert "max-num-seqs" not in json.loads("\n".join(told("--json", "--override", "max-num-seqs=null")))["args"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--override", "max-num-seqs"), "is not KEY=VALUE"),
        (("--override", "=1"), "is not KEY=VALUE"),
        (("--override", "max-num-seqs=064"), "has a leading zero"),
        (("--override", "max-num-seqs=[1"), "is not valid YAML"),
        (("--override", "max-num-seqs=many"), "not a number"),
        (("--override", "HF_TOKEN=x"), "is a secret"),
        (("--override", "a=1", "--override", "a.b=1"), "gives 'a' a value and keys"),
        (("--show", "benchmark"), "did you mean bench?"),
    ],
)
def test_what_is_written_wrong_is_one_error(options: tuple[str, ...], says: str) -> None:
    fault = CliRunner().invoke(app, [*ASKED, *options]).exception
    assert isinstance(fault, FleetError)
    assert says in str(fault)
    assert fault.exit_code == 2
