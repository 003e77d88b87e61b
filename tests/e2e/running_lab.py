"""A running lab as the tests use it: its gateway, its hosts over SSH, its playbook and its drift."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import job
from vllm_fleet import paths, site
from vllm_fleet.site import Site


@dataclass(frozen=True)
class Lab:
    """A lab whose stack is up and whose site.yml has run."""

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
            ["vllm-fleet", "drift", "--fleet", self.folder.name, "--json"],
            cwd=paths.root(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.returncode, json.loads(done.stdout)
