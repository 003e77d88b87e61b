"""What one host has compiled reaches an equal host before its start, and only as it was."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from e2e.running_lab import Lab
from vllm_fleet.host import host_paths


@pytest.fixture
def seed(lab: Lab) -> Path:
    """What the first host of the lab has left on the controller."""
    variables = lab.site.hosts[0].variables
    key = Path(variables["vllm_service_start_cache"]).name
    return Path(variables["vllm_service_start_cache_store"]) / f"{key}.json"


def start_again_without_cache(lab: Lab, seed: Path) -> str:
    """Has lab-1 start as a new host would; what the run says of it."""
    directory = host_paths.cache_directory(seed.stem)
    lab.on("lab-1", f"systemctl stop vllm@0 && rm -rf {directory}")
    done = lab.playbook("--limit", "lab-1")
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_an_equal_host_starts_with_what_another_has_compiled(lab: Lab, seed: Path) -> None:
    kept = json.loads(seed.read_text(encoding="utf-8"))
    archive = seed.parent / f"{kept['sha256']}.tar.gz"
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == kept["sha256"]
    said = start_again_without_cache(lab, seed)
    assert f"with the cache of {kept['host']}" in said
    with tarfile.open(archive) as packed:
        names = [member.name for member in packed if member.isfile()]
    there = lab.on("lab-1", f"cd {host_paths.cache_directory(seed.stem)} && stat --format=%U:%n {' '.join(names)}")
    assert there.stdout.split() == [f"vllm:{name}" for name in names]


def test_one_that_was_changed_is_not_used_and_is_replaced(lab: Lab, seed: Path) -> None:
    kept = json.loads(seed.read_text(encoding="utf-8"))
    archive = seed.parent / f"{kept['sha256']}.tar.gz"
    archive.write_bytes(archive.read_bytes() + b"x")
    assert "without a cache" in start_again_without_cache(lab, seed)
    again = json.loads(seed.read_text(encoding="utf-8"))
    assert again["host"] == "lab-1"
    assert hashlib.sha256((seed.parent / f"{again['sha256']}.tar.gz").read_bytes()).hexdigest() == again["sha256"]
