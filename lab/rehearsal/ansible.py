"""The second half of a rehearsal: ``site.yml --check`` on its hosts, and what they say of their GPUs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from lab.rehearsal.stage import Stage
from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import load as load_catalog
from vllm_fleet.edge import ssh_target
from vllm_fleet.fleet import plan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.fleet.stack import locations
from vllm_fleet.host.manifest import Manifest, wanted_facts
from vllm_fleet.operate import probing

_REFUSED = 2


@dataclass(frozen=True)
class Check:
    """What ``site.yml --check`` came to.

    Attributes:
        refused: why the plan was refused before a host was asked; empty where it was not.
        text: what Ansible said.
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
    said = done.stdout + done.stderr
    told = [line.removeprefix("[ERROR]:").strip() for line in said.splitlines() if line.startswith("[ERROR]")]
    refused = told[0] if done.returncode == _REFUSED and told and "PLAY [" not in said else ""
    return Check(done.returncode, refused, said)


def vetoes(stage: Stage) -> Mapping[str, tuple[str, ...]]:
    """Host -> why it must not be touched, of all hosts of a stage, by the facts that its class wants.

    Raises:
        FleetError: a host does not answer, or not with the key of the stack.
    """
    found = plan.load(stage.folder)
    asked = [(_target(stage, found, name), _manifest(found, name)) for name in (host.name for host in found.hosts)]
    reports = probing.probe(asked)
    for report in reports.values():
        if report.error:
            raise FleetError(report.error, host=report.host, code="work-failed")
    return {name: report.veto for name, report in reports.items()}


def _target(stage: Stage, found: Plan, name: str) -> ssh_target.Target:
    at = locations(found)[name]
    key = stage.folder / "ssh" / "id_ed25519"
    return ssh_target.Target(name, at.address, at.port, at.user, at.ssh_host_keys, key)


def _manifest(found: Plan, name: str) -> Manifest:
    """A manifest of facts alone: those of the class, which no engine is needed for."""
    host = next(each for each in found.hosts if each.name == name)
    facts = wanted_facts(load_catalog().host_class(host.host_class)) if host.host_class else {}
    return Manifest(name, (), facts)


def drift_count(stage: Stage) -> Mapping[str, int]:
    """Host -> how many items the probe of the last check has found not as planned; empty where it asked none."""
    file = paths.run_dir(stage.fleet) / "drift.json"
    if not file.is_file():
        return {}
    hosts: Mapping[str, list[object]] = json.loads(file.read_text(encoding="utf-8"))["hosts"]
    return {host: len(items) for host, items in hosts.items()}
