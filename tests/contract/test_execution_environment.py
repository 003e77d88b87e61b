"""The execution environment: its packages are those of uv.lock, and nothing in it is without a version."""

from __future__ import annotations

import re

import yaml

from tools import docs
from vllm_fleet.base import paths
from vllm_fleet.fleet import private_key
from vllm_fleet.operate.rollout import regions

FOLDER = paths.root() / "execution-environment"


def test_its_packages_are_those_of_the_lock() -> None:
    text = (FOLDER / "requirements.txt").read_text(encoding="utf-8")
    assert text == docs.worker_requirements()
    names = set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))
    assert set(regions.PACKAGES) <= names
    assert not {name for name in names if name.startswith("pulumi")}


def test_its_image_and_its_environment() -> None:
    definition = yaml.safe_load((FOLDER / "execution-environment.yml").read_text(encoding="utf-8"))
    assert re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", definition["images"]["base_image"]["name"])
    for name, value in private_key.OF_AGENT.items():
        assert f"ENV {name}={value}" in definition["additional_build_steps"]["append_final"]
    (install,) = (step for step in definition["additional_build_steps"]["append_base"] if step.startswith("RUN"))
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(install.split())
