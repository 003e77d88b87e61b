"""ansible-builder reads the execution environment: its schema, and the build file that it makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hanging import HANGING_SECONDS

from vllm_fleet.base import paths
from vllm_fleet.edge.uv import group_environment

pytestmark = pytest.mark.network
DEFINITION = paths.root() / "execution-environment" / "execution-environment.yml"


def create(definition: Path, context: Path) -> subprocess.CompletedProcess[str]:
    builder = group_environment("execution-environment", "ansible-builder") / "bin" / "ansible-builder"
    words = [str(builder), "create", "-f", str(definition), "-c", str(context)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=HANGING_SECONDS)


def test_ansible_builder_takes_the_definition(tmp_path: Path) -> None:
    done = create(DEFINITION, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    text = next(tmp_path.glob("*file")).read_text(encoding="utf-8")
    assert (tmp_path / "_build" / "packages" / "requirements.txt").read_bytes() == (
        DEFINITION.with_name("requirements.txt").read_bytes()
    )
    base, final = text.partition("# Final build stage")[::2]
    assert "pip install --no-cache-dir --require-hashes --no-deps --only-binary=:all:" in base
    # After the packages of the lock are there, it checks that ansible and ansible-runner are.
    assert "check_ansible $PYCMD" in final
    assert "ENV PYTHONPATH=/runner/project" in final


def test_ansible_builder_refuses_another_key(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(DEFINITION.read_text(encoding="utf-8").replace("append_base:", "append_basis:"))
    done = create(wrong, tmp_path / "context")
    assert done.returncode != 0
    assert "append_basis" in done.stdout + done.stderr
