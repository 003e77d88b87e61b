"""The second half of a rehearsal: ``site.yml --check`` on its hosts, and the facts of their GPUs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from lab.rehearsal.stage import Stage
from vllm_fleet.base import paths
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue.catalogue import load as load_catalog
from vllm_fleet.edge import names, ssh_target
from vllm_fleet.fleet import plan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.fleet.stack import locations
from vllm_fleet.host.manifest import Manifest, wanted_facts
from vllm_fleet.operate import probing

_REFUSED = 2


@dataclass(frozen=True)
class Check:
    """The result of ``site.yml --check``.

    Attributes:
        refused: why the plan was refused before any host was probed; empty where it was accepted.
        text: the output of Ansible.
    """

    exit_code: int
    refused: str
    text: str


def check(stage: Stage) -> Check:
    """Runs ``site.yml --check`` on the hosts of a stage."""
    done = subprocess.run(
        ["ansible-playbook", "-i", str(stage.folder / "fleet.yml"), "site.yml", "--check"],
        cwd=paths.root(),
        env=dict(stage.environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    output = done.stdout + done.stderr
    errors = [line.removeprefix("[ERROR]:").strip() for line in output.splitlines() if line.startswith("[ERROR]")]
    refused = errors[0] if done.returncode == _REFUSED and errors and "PLAY [" not in output else ""
    return Check(done.returncode, refused, output)


def vetoes(stage: Stage) -> Mapping[str, tuple[str, ...]]:
    """Host -> the vetoes from its facts, for all hosts of a stage.

    Raises:
        FleetError: a host does not answer, or not with the key of the stack.
    """
    fleet_plan = plan.load(stage.folder)
    targets = [
        (_target(stage, fleet_plan, name), _manifest(fleet_plan, name))
        for name in (host.name for host in fleet_plan.hosts)
    ]
    reports = probing.probe_hosts(targets)
    for report in reports.values():
        if report.error:
            raise FleetError(report.error, host=report.host, code=ErrorCode.WORK_FAILED)
    return {name: tuple(veto.text for veto in report.veto) for name, report in reports.items()}


def _target(stage: Stage, fleet_plan: Plan, name: str) -> ssh_target.Target:
    at = locations(fleet_plan, names.resolve_names)[name]
    key = stage.folder / "ssh" / "id_ed25519"
    return ssh_target.Target(name, at.address, at.port, at.user, at.ssh_host_keys, key)


def _manifest(fleet_plan: Plan, name: str) -> Manifest:
    """A manifest with the facts of the class only, which needs no engine."""
    host = next(candidate for candidate in fleet_plan.hosts if candidate.name == name)
    facts = wanted_facts(load_catalog().host_class(host.host_class)) if host.host_class else {}
    return Manifest(name, (), facts)


def drift_count(stage: Stage) -> Mapping[str, int]:
    """Host -> the number of items that differ from the plan in the last check; empty where no host was probed."""
    file = paths.run_dir(stage.fleet) / "drift.json"
    if not file.is_file():
        return {}
    hosts: Mapping[str, list[object]] = json.loads(file.read_text(encoding="utf-8"))["hosts"]
    return {host: len(items) for host, items in hosts.items()}
