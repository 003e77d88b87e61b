"""A lab as the tests use it: made and removed; its gateway, its hosts over SSH, its playbook and its drift."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hanging import HANGING_SECONDS

from lab import cleanup, job, state
from vllm_fleet import inventory
from vllm_fleet.base import paths
from vllm_fleet.inventory import Site


@dataclass(frozen=True)
class Lab:
    """A lab whose stack is up and whose site.yml has run."""

    folder: Path
    gateway: job.Endpoint

    @property
    def site(self) -> Site:
        return inventory.load(self.folder)

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
            timeout=HANGING_SECONDS,
        )

    def playbook(self, *arguments: str, book: str = "site.yml") -> subprocess.CompletedProcess[str]:
        """Runs a playbook on the lab."""
        return subprocess.run(
            ["ansible-playbook", "-i", str(self.folder / "fleet.yml"), book, *arguments],
            cwd=paths.root(),
            capture_output=True,
            text=True,
            check=False,
            timeout=HANGING_SECONDS,
        )

    def drift(self) -> tuple[int, Any]:
        """Exit code and result of ``vllm-fleet drift --json``."""
        done = subprocess.run(
            ["vllm-fleet", "drift", "--fleet", self.folder.name, "--json"],
            cwd=paths.root(),
            capture_output=True,
            text=True,
            check=False,
            timeout=HANGING_SECONDS,
        )
        return done.returncode, json.loads(done.stdout)


@contextmanager
def folder_of(fleet: str, bridge: str) -> Iterator[Path]:
    """A fleet's folder with all that its stack needs, whatever a killed run has left; its lab is gone at the end."""
    base = paths.root() / ".fleet" / f"test-{fleet}"
    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    with (paths.cache_dir() / f"test-{fleet}.lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if bridge in state.labs():
            cleanup.down(bridge)
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(Path(__file__).parent / "fleets", base / "inventories")
        (base / "pulumi").mkdir()
        patch.setenv("VLLM_FLEET_INVENTORIES", str(base / "inventories"))
        patch.setenv("PULUMI_BACKEND_URL", f"file://{base / 'pulumi'}")
        patch.setenv("PULUMI_CONFIG_PASSPHRASE", "a passphrase of the tests")
        patch.setenv("ANSIBLE_CONFIG", str(paths.root() / "ansible.cfg"))
        try:
            yield base / "inventories" / fleet
        finally:
            job.stack_down(fleet)
            (paths.root() / f"Pulumi.{fleet}.yaml").unlink(missing_ok=True)
            shutil.rmtree(base)
