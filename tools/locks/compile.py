"""Resolves the packages of an engine with uv, for one machine and each of its Pythons."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.paths import cache_dir
from vllm_fleet.catalogue import engine_locks
from vllm_fleet.edge.uv import uv_program
from vllm_fleet.schema.recipe import Engine, Machine, WheelInstall

_TIMEOUT_SECONDS = 1800


def packages(
    engine: Engine, wheel: WheelInstall, machine: Machine, indexes: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Python -> every package of the engine, as ``pylock.toml`` lists it: name, version, and a wheel or an sdist.

    Each Python is resolved alone. With ``--universal``, uv reads the requirements of one wheel of a package only, and
    packages whose wheels differ in them lose requirements.

    Args:
        engine: the engine.
        wheel: its wheel form, with the requirements.
        machine: the machine type.
        indexes: indexes in front of the package index.

    Raises:
        FleetError: uv finds no compatible packages, or cannot reach an index.
    """
    by_python = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pyproject.toml").write_text(_project(engine, machine, indexes), encoding="utf-8")
        output = Path(folder) / "pylock.toml"
        for python in wheel.python:
            # The output file has the choices for the Python before; uv prefers them where they fit.
            _compile(engine, wheel, machine, python, output)
            by_python[python] = list(tomllib.loads(output.read_text(encoding="utf-8"))["packages"])
    return by_python


def _compile(engine: Engine, wheel: WheelInstall, machine: Machine, python: str, output: Path) -> None:
    words = [
        *("pip", "compile", "pyproject.toml", "--output-file", output.name, "--format", "pylock.toml"),
        *("--python-version", python, "--python-platform", f"{machine}-manylinux_{wheel.glibc_min.replace('.', '_')}"),
        *("--generate-hashes", "--no-header", "--quiet", "--only-binary", ":all:"),
        *(word for name in wheel.sources for word in ("--no-binary", name)),
        *("--preview-features", "index-exclude-newer"),
    ]
    # With this variable, uv would ignore the project's file.
    environment = {name: value for name, value in os.environ.items() if name != "UV_NO_CONFIG"}
    done = subprocess.run(
        [uv_program(), *words],
        cwd=output.parent,
        # uv needs no interpreter of another Python, and must not download one that is not pinned.
        env={**environment, "UV_CACHE_DIR": str(cache_dir() / "uv"), "UV_PYTHON_DOWNLOADS": "never"},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise FleetError(
            f"no lock for {engine.id}, Python {python}, {machine}: {done.stderr.strip()}",
            "if another index has the build, give it with --index",
            code=ErrorCode.WORK_FAILED,
        )


def _project(engine: Engine, machine: Machine, indexes: Sequence[str]) -> str:
    """A project that requires only the engine. A JSON list of strings is a TOML array too."""
    inputs = engine_locks.inputs(engine, machine)
    text = (
        f'[project]\nname = "engine"\nversion = "0"\ndependencies = {json.dumps(inputs["requirements"])}\n\n'
        f"[tool.uv]\noverride-dependencies = {json.dumps(inputs['overrides'])}\n"
        f"exclude-dependencies = {json.dumps(inputs['without'])}\n"
        f'exclude-newer = "{inputs["as_of"]}T00:00:00Z"\n'
    )
    for number, url in enumerate(indexes):
        # An index without dates has no exclude-newer; the digests pin its files.
        text += f'\n[[tool.uv.index]]\nname = "engine-{number}"\nurl = {json.dumps(url)}\nexclude-newer = false\n'
    return text
