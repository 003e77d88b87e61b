"""Drift as a step of a run: which hosts are asked, what the answers mean, and what the run may do next."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from vllm_fleet import paths
from vllm_fleet.edge.ssh import Report, Target
from vllm_fleet.errors import FleetError
from vllm_fleet.files import write_atomically
from vllm_fleet.site import Site, SiteHost
from vllm_fleet.site import load as load_site


@cache
def site_of_run(directory: Path) -> Site:
    """The fleet as this process found it first: the inventory, its refresh and the probe see one plan, read once.

    Raises:
        FleetError: the files of the fleet are missing or do not agree.
    """
    return load_site(directory)


def target(site: Site, host: SiteHost) -> Target:
    """A host as the fleet's own files reach it."""
    at = host.location
    return Target(host.plan.name, at.address, at.port, at.user, at.ssh_host_keys, site.private_key_file)


def faults(reports: Mapping[str, Report]) -> list[FleetError]:
    """The hosts that must stop a run: no answer, or not what their class says."""
    found = []
    for report in reports.values():
        if report.error:
            hint = f"repair it, or leave it out with --limit 'all:!{report.host}'"
            found.append(FleetError(report.error, hint, host=report.host, code="work-failed"))
        found += [
            FleetError(text, "correct host_class in fleet.yml or the host", host=report.host, code="refused")
            for text in report.veto
        ]
    return found


def _process_identity(pid: int) -> str:
    """A process beyond doubt: its number and its start."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return f"{pid}-{fields[19]}"


def _file(fleet: str) -> Path:
    return paths.root() / ".fleet" / fleet / "drift.json"


def keep(fleet: str, reports: Mapping[str, Report], run_pid: int) -> None:
    """Leaves the drift for the inventory of the same run; no other run takes it for its own."""
    data = {
        "run": _process_identity(run_pid),
        "hosts": {host: [item.record() for item in report.drift] for host, report in reports.items()},
    }
    write_atomically(_file(fleet), json.dumps(data, indent=1) + "\n")


def kept(fleet: str) -> Mapping[str, frozenset[str]]:
    """Host -> roles that it needs, as this very process has found; empty when it has not probed."""
    try:
        data = json.loads(_file(fleet).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    if data["run"] != _process_identity(os.getpid()):
        return {}
    return {host: frozenset(item["role"] for item in items) for host, items in data["hosts"].items()}
