"""Every config that the catalogue renders for the installed CPU engine, read by vLLM's own argument parser."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from hanging import HANGING_SECONDS

from lab.artifacts.engine import ENGINE, lock_file
from vllm_fleet.base.digests import file_sha256
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.paths import cache_dir, root
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.host import instance_files
from vllm_fleet.reports import recipe_check
from vllm_fleet.resolve.resolve import Question, resolve

pytestmark = pytest.mark.network

SCRIPT = root() / "tools" / "engines" / "real_parser.py"


@pytest.fixture
def python() -> Path:
    """The interpreter of the engine's environment; ``VLLM_FLEET_ENGINE_PYTHON`` names another one."""
    built = cache_dir() / "engines" / f"{ENGINE}-{file_sha256(lock_file())[:12]}" / "bin" / "python"
    found = Path(os.environ.get("VLLM_FLEET_ENGINE_PYTHON", built))
    if not found.is_file():
        pytest.skip(f"the engine environment is not built ({found} is missing): `make lab` or `make test` builds it")
    return found


def configs(catalog: Catalog) -> dict[str, list[str]]:
    """Each different config of the engine, and the deployments that it is of."""
    found: dict[str, list[str]] = {}
    for model in catalog.models.values():
        for asked in recipe_check.combinations(catalog, model):
            if asked.engine.id != ENGINE:
                continue
            for features in ((), *((feature,) for feature in recipe_check.FEATURES)):
                question = Question(asked.host.id, model.name, asked.profile, ENGINE, asked.install, features)
                try:
                    deployment = resolve(catalog, question)
                except FleetError as fault:
                    assert fault.code == "refused", fault
                    continue
                args = {**deployment.args, "model": model.name, "served-model-name": [model.name], "port": 8000}
                text = instance_files.config_text(args, mappings_as_text=deployment.mappings_as_text)
                named = f"{model.name} on {asked.host.id}, {asked.profile} {features}"
                found.setdefault(text, []).append(named)
    return found


def test_vllm_reads_every_config_of_the_installed_engine(catalog: Catalog, python: Path, tmp_path: Path) -> None:
    rendered = configs(catalog)
    files = []
    for number, text in enumerate(rendered):
        files.append(tmp_path / f"{number}.yml")
        files[-1].write_text(text, encoding="utf-8")
    done = subprocess.run(
        [str(python), str(SCRIPT), "parse", *map(str, files)],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANGING_SECONDS,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(rendered) > 0, done.stderr
    refused = [
        (names, answer["error"]) for names, answer in zip(rendered.values(), answers, strict=True) if "error" in answer
    ]
    assert refused == []
    assert {"vllm-fleet/lab-gpt-oss", "openai/gpt-oss-20b"} == {answer["args"]["model"] for answer in answers}
