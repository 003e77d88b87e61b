"""One lab for all end-to-end tests: real hosts, real vLLM, a real gateway; needs root and package registries."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_lab import Lab

from lab import cleanup, job, state
from lab.artifacts.model.questions import Questions, read_questions
from vllm_fleet import paths

FLEET = "labtest"
BRIDGE = "vf-test"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.network)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab, made from nothing whatever a killed run has left, and removed at the end."""
    if os.geteuid() != 0:
        pytest.skip("systemd-nspawn hosts need root")
    base = paths.root() / ".fleet" / "test"
    folder = base / "inventories" / FLEET
    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    with (paths.cache_dir() / "test-lab.lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if BRIDGE in state.labs():
            cleanup.down(BRIDGE)
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(HERE / "fleets", base / "inventories")
        (base / "pulumi").mkdir()
        patch.setenv("VLLM_FLEET_INVENTORIES", str(base / "inventories"))
        patch.setenv("PULUMI_BACKEND_URL", f"file://{base / 'pulumi'}")
        patch.setenv("PULUMI_CONFIG_PASSPHRASE", "a passphrase of the tests")
        patch.setenv("ANSIBLE_CONFIG", str(paths.root() / "ansible.cfg"))
        try:
            job.stack_up(FLEET)
            job.roll_out(FLEET)
            yield Lab(folder, job.endpoint(FLEET))
        finally:
            job.stack_down(FLEET)
            (paths.root() / f"Pulumi.{FLEET}.yaml").unlink(missing_ok=True)
            shutil.rmtree(base)


@pytest.fixture(scope="session")
def known() -> Questions:
    return read_questions()
