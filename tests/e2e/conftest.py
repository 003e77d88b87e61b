"""One lab for all end-to-end tests: real hosts, real vLLM, a real gateway; needs root and package registries."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import cleanup, job, state
from lab.artifacts.model.questions import Questions, read_questions
from vllm_fleet import paths, site
from vllm_fleet.site import Site

FLEET = "labtest"
BRIDGE = "vf-test"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.network)


@dataclass(frozen=True)
class Lab:
    """The running lab as the tests use it."""

    folder: Path
    gateway: job.Endpoint

    @property
    def site(self) -> Site:
        return site.load(self.folder)

    def on(self, host: str, command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command as root on a host, over SSH with the host key of the stack."""
        at = next(each.location for each in self.site.hosts if each.plan.name == host)
        known_hosts = self.folder / "known_hosts"
        known_hosts.write_text(self.site.known_hosts, encoding="utf-8")
        return subprocess.run(
            [
                *("ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"),
                *("-o", f"UserKnownHostsFile={known_hosts}", "-i", str(self.folder / "ssh" / "id_ed25519")),
                *(f"{at.user}@{at.address}", f"sudo sh -c '{command}'"),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def playbook(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs site.yml on the lab."""
        return subprocess.run(
            ["ansible-playbook", "-i", str(self.folder / "fleet.yml"), "site.yml", *arguments],
            cwd=paths.root(),
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )

    def drift(self) -> tuple[int, Any]:
        """Exit code and result of ``vllm-fleet drift --json``."""
        done = subprocess.run(
            ["vllm-fleet", "drift", "--fleet", FLEET, "--json"],
            cwd=paths.root(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.returncode, json.loads(done.stdout)


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
