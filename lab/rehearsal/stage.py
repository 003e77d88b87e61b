"""Where a rehearsal plays: a project with a backend, an inventory and a cloud of its own, and ``pulumi`` in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import process
from lab.rehearsal.cloud import Account
from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet import plan


@dataclass(frozen=True)
class Stage:
    """A project folder, with the environment of its commands.

    Attributes:
        fleet: the fleet's and the stack's name.
        project: where ``pulumi`` runs.
    """

    fleet: str
    project: Path
    environment: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """The fleet's folder."""
        return self.project / "inventories" / self.fleet

    def words(self, *words: str) -> list[str]:
        """The command line of ``pulumi`` for this stack."""
        return ["pulumi", *words, "--stack", self.fleet, "--non-interactive"]

    def pulumi(self, *words: str, check: bool = True, **more: str) -> str:
        """Runs ``pulumi`` and returns what it said.

        Args:
            words: its arguments.
            check: whether a failure is an error.
            more: further variables of its environment.

        Raises:
            FleetError: it failed.
        """
        done = subprocess.run(
            self.words(*words),
            cwd=self.project,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        said = done.stdout + done.stderr
        if check and done.returncode:
            raise FleetError(f"pulumi {' '.join(words)} failed:\n{said}", code="work-failed")
        return said


def build(project: Path, fleet: str, text: str, served: Mapping[str, str]) -> Stage:
    """Makes the folders of a stage and its stack; what was there before goes.

    Args:
        project: its folder.
        fleet: the fleet's name.
        text: its ``fleet.yml``.
        served: the environment that :func:`lab.rehearsal.serve.serve` gives.
    """
    for part in ("infra", "backend", "inventories", "home"):
        path = project / part
        if path.is_symlink():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)
    folder = project / "inventories" / fleet
    folder.mkdir(parents=True)
    (folder / "fleet.yml").write_text(text, encoding="utf-8")
    shutil.copy(paths.root() / "Pulumi.yaml", project)
    (project / "infra").symlink_to(paths.root() / "infra")
    (project / "backend").mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PULUMI_", "AWS_", "FLEET_"))}
    environment = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "VLLM_FLEET_INVENTORIES": str(project / "inventories"),
        "ANSIBLE_CONFIG": str(paths.root() / "ansible.cfg"),
        "PULUMI_BACKEND_URL": f"file://{project / 'backend'}",
        "PULUMI_HOME": str(project / "home"),
        "PULUMI_CONFIG_PASSPHRASE": "only for this rehearsal",
        "PULUMI_SKIP_UPDATE_CHECK": "1",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        **served,
    }
    stage = Stage(fleet, project, environment)
    stage.pulumi("stack", "init")
    return stage


def end_left(project: Path) -> int:
    """Ends what a killed rehearsal has left running for its stage: engines, their plugins, Ansible, connections.

    Args:
        project: the stage's folder, which its processes have in their environment.

    Returns:
        How many there were.
    """
    mark = f"PULUMI_HOME={project / 'home'}".encode()
    ended = 0
    for entry in Path("/proc").iterdir():
        try:
            mine = entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # no process, or gone by now
        if mine and (found := process.look(int(entry.name))):
            process.kill(found)
            ended += 1
    return ended


def account_of(folder: Path) -> Account:
    """An account that has what a fleet says is there: reservations, images, compartments; and nothing else."""
    found: dict[str, list[str]] = {"reservations": [], "compartments": [], "images": []}
    for host in plan.load(folder).hosts:
        if host.rented is None:
            continue
        placement = host.rented.placement
        found["reservations"] += [placement.capacity.id] if placement.capacity.id else []
        found["images"] += [placement.image] if placement.image not in (None, "latest") else []
        found["compartments"] += [str(placement.compartment)] if hasattr(placement, "compartment") else []
    return Account(have={kind: sorted(set(ids)) for kind, ids in found.items()})


def refused(said: str) -> Sequence[str]:
    """The lines of ``pulumi``'s output that name an error."""
    return [line.strip() for line in said.splitlines() if "error:" in line]
