"""The manifest of the installed CPU engine against the engine itself: what the static reader says, vLLM says too."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hanging import HANGING_SECONDS

from lab.artifacts.engine import ENGINE, lock_file
from tools.engines import manifest, wheels
from tools.engines.__main__ import names_dir
from tools.engines.releases import RELEASES
from vllm_fleet.base.digests import file_sha256
from vllm_fleet.base.paths import cache_dir, root

pytestmark = pytest.mark.network

RELEASE = next(release for release in RELEASES if release.id == "0.32.0-cpu")
SCRIPT = root() / "tools" / "engines" / "real_parser.py"
# Keys that are compared by themselves, or that the running engine cannot tell.
OTHER = {"engine_release", "source", "covers", "flags", "env", "env_unused", "env_dead_ends", "config_file"}


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of the engine's environment; ``VLLM_FLEET_ENGINE_PYTHON`` names another one."""
    built = cache_dir() / "engines" / f"{ENGINE}-{file_sha256(lock_file())[:12]}" / "bin" / "python"
    found = Path(os.environ.get("VLLM_FLEET_ENGINE_PYTHON", built))
    if not found.is_file():
        pytest.skip(f"the engine environment is not built ({found} is missing): `make lab` or `make test` builds it")
    return found


def ask(python: Path, home: Path, *arguments: str) -> list[dict[str, Any]]:
    """What the script prints, one answer a line. A variable set here would be a default there, so it gets none."""
    done = subprocess.run(
        [str(python), str(SCRIPT), *arguments],
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=HANGING_SECONDS,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def static() -> dict[str, Any]:
    return yaml.load((names_dir() / f"{RELEASE.id}.yml").read_text(encoding="utf-8"), yaml.CSafeLoader)


@pytest.fixture(scope="module")
def real(python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    (answer,) = ask(python, tmp_path_factory.mktemp("home"), "dump")
    assert "error" not in answer, answer
    return answer


def test_the_manifest_comes_out_of_the_installed_files(python: Path, static: dict[str, Any]) -> None:
    (site_packages,) = python.parent.parent.glob("lib/python3.*/site-packages")
    assert manifest.build(RELEASE, wheels.read_installed(site_packages)) == static


def test_every_flag_is_as_the_real_parser_has_it(static: dict[str, Any], real: dict[str, Any]) -> None:
    assert real["flags"] == static["flags"]


def test_every_variable_of_the_real_table_is_listed(static: dict[str, Any], real: dict[str, Any]) -> None:
    assert set(real["env"]) <= set(static["env"])
    # null stands for none and for "only known at run time"; every other default is the real one.
    known = {name: static["env"][name] for name in real["env"] if static["env"][name] is not None}
    assert {name: real["env"][name] for name in known} == known
    assert len(known) > len(real["env"]) / 2


def test_every_key_and_parser_is_as_the_real_classes_have_it(static: dict[str, Any], real: dict[str, Any]) -> None:
    keys = set(static) - OTHER
    assert {key: real[key] for key in keys} == {key: static[key] for key in keys}


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    # name: (the file, what vLLM makes of it; "error" holds a part of its refusal)
    "dashed keys": ("max-num-seqs: 12\nasync-scheduling: true\n", {"max_num_seqs": 12, "async_scheduling": True}),
    "a mapping": (
        "compilation-config: {pass_config: {eliminate_noops: true}}\n",
        {"compilation_config": {"object": "CompilationConfig"}},
    ),
    "an unknown pass": ("compilation-config: {pass_config: {enable_noop: true}}\n", {"error": "compilation-config"}),
    "an unknown flag": ("cuda-graph-sizes: 2048\n", {"error": "unrecognized arguments: --cuda-graph-sizes"}),
    "the guide's singular": ("disable-log-request: true\n", {"error": "unrecognized arguments: --disable-log-request"}),
    "the negated form": ("no-enable-prefix-caching: true\n", {"enable_prefix_caching": False}),
    "false is dropped": ("enable-log-deltas: false\n", {"enable_log_deltas": True}),
    "false with underscores is dropped": ("enable_log_deltas: false\n", {"enable_log_deltas": True}),
    "null becomes text": ("load-format: null\ndownload-dir: null\n", {"load_format": "None", "download_dir": None}),
    "null for a number": ("port: null\n", {"error": "argument --port"}),
    "a list": ("served-model-name: [a, b]\n", {"served_model_name": ["a", "b"]}),
}


@pytest.fixture(scope="module")
def parsed(python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All the files in one run: importing vLLM is what takes the time."""
    home = tmp_path_factory.mktemp("configs")
    files = []
    for number, (text, _) in enumerate(CONFIGS.values()):
        files.append(home / f"{number}.yaml")
        files[-1].write_text(f"model: a-model\n{text}")
    return dict(zip(CONFIGS, ask(python, home, "parse", *map(str, files)), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_vllm_serve_makes_of_a_config_file(parsed: dict[str, dict[str, Any]], name: str) -> None:
    _, expected = CONFIGS[name]
    answer = parsed[name]
    if "error" in expected:
        assert expected["error"] in answer["error"]
    else:
        assert {key: answer["args"][key] for key in expected} == expected
        assert answer["args"]["model"] == "a-model"
