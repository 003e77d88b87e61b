"""The project of a rehearsal, with its own backend, inventory and cloud, and ``pulumi`` in it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.rehearsal.cloud import Account
from vllm_fleet.base import paths
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.processes import environment_of, find_process, kill_process, process_ids
from vllm_fleet.edge.pulumi_cli import run_pulumi
from vllm_fleet.fleet import plan

_TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class Stage:
    """A project folder, with the environment of its commands.

    Attributes:
        fleet: the fleet's and the stack's name.
        project: the folder in which ``pulumi`` runs.
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
        """Runs ``pulumi`` and returns its output.

        Args:
            words: its arguments.
            check: whether a failure is an error.
            more: additional environment variables.

        Raises:
            FleetError: it failed.
        """
        done = run_pulumi(
            *self.words(*words)[1:],
            cwd=self.project,
            environment={**self.environment, **more},
            timeout_seconds=_TIMEOUT_SECONDS,
        )
        output = done.stdout + done.stderr
        if check and done.returncode:
            raise FleetError(f"pulumi {' '.join(words)} failed:\n{output}", code=ErrorCode.WORK_FAILED)
        return output


def build(project: Path, fleet: str, text: str, served: Mapping[str, str]) -> Stage:
    """Creates the folders of a stage and its stack; removes an earlier one.

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
        # Without files of metadata, whose digests cost a seventh of the engine's time.
        "PULUMI_BACKEND_URL": f"file://{project / 'backend'}?metadata=skip",
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
    """Kills the processes of a killed rehearsal: engines, their plugins, Ansible, connections.

    Args:
        project: the stage's folder, which is in the environment of its processes.

    Returns:
        The number of processes.
    """
    mark = f"PULUMI_HOME={project / 'home'}"
    left = [process for pid in process_ids() if mark in environment_of(pid) and (process := find_process(pid))]
    for process in left:
        kill_process(process)
    return len(left)


#: Key of a placement -> the kind of things of an account that it names.
_IDENTITIES = {
    "instance_profile": "instance_profiles",
    "service_account": "service_accounts",
    "managed_identity": "identities",
}


def account_of(folder: Path) -> Account:
    """An account with the reservations, images, compartments and identities that a fleet names."""
    named: dict[str, list[str]] = {"reservations": [], "compartments": [], "images": []}
    named |= {kind: [] for kind in _IDENTITIES.values()}
    fleet_plan = plan.load(folder)
    for host in fleet_plan.hosts:
        if host.rented is None:
            continue
        placement = host.rented.placement
        named["reservations"] += [placement.capacity.id] if placement.capacity.id else []
        named["images"] += [placement.image] if placement.image not in (None, "latest") else []
        named["compartments"] += [str(placement.compartment)] if hasattr(placement, "compartment") else []
        for key, kind in _IDENTITIES.items():
            named[kind] += [str(identity)] if (identity := getattr(placement, key, None)) else []
    account = fleet_plan.spec.account
    ids = {cloud: str(id_) for cloud in ("aws", "azure", "oci") if (id_ := getattr(account, cloud))}
    return Account(have={kind: sorted(set(ids)) for kind, ids in named.items()}, ids=ids)


def refused(output: str) -> Sequence[str]:
    """The lines of ``pulumi``'s output that name an error."""
    return [line.strip() for line in output.splitlines() if "error:" in line]
