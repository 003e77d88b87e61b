"""Drift as a step of a run: which hosts are asked, what the answers mean, and what the run may do next."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.fleet import host_facts
from vllm_fleet.inventory import Site, SiteHost
from vllm_fleet.inventory import load as load_site
from vllm_fleet.operate import probing
from vllm_fleet.operate.probing import Report

#: As the probe words it; a unit of which other things are wrong may serve all the same.
_NOT_RUNNING = ("is inactive", "is failed", "is not known")


def site_of_run(directory: Path) -> Site:
    """The fleet as this process found it first: the inventory, its refresh and the probe see one plan, read once.

    Only what hosts say of themselves may change it, since a rule may depend on that.

    Raises:
        FleetError: the files of the fleet are missing or do not agree.
    """
    return _site(directory, json.dumps(host_facts.load(directory.name), sort_keys=True))


@cache
def _site(directory: Path, facts: str) -> Site:
    del facts
    return load_site(directory)


def examine(
    site: Site, targets: Mapping[str, Target], on_report: Callable[[Report], None] = lambda _: None
) -> Mapping[str, Report]:
    """Probes hosts; one whose own facts give it another plan is probed for that one too.

    Args:
        site: the fleet.
        targets: the hosts to ask, by name, as they are reached.
        on_report: called as each host answers, for progress.

    Returns:
        A report for each host.

    Raises:
        FleetError: the fleet's files changed in the meantime and are wrong now.
    """
    asked = {host.plan.name: host.manifest for host in site.hosts if host.plan.name in targets}
    reports = dict(probing.probe([(targets[name], manifest) for name, manifest in asked.items()], on_report))
    said = {name: report.facts for name, report in reports.items() if report.facts}
    if host_facts.keep(site.plan.fleet, said):
        now = site_of_run(site.plan.directory)
        changed = [each for each in now.hosts if each.plan.name in asked and each.manifest != asked[each.plan.name]]
        reports |= probing.probe([(targets[each.plan.name], each.manifest) for each in changed])
    return reports


def target(site: Site, host: SiteHost) -> Target:
    """A host as the fleet's own files reach it."""
    at = host.location
    door = site.jump_host(host)
    jump = target(site, door) if door else None
    return Target(host.plan.name, at.address, at.port, at.user, at.ssh_host_keys, site.private_key_file, jump=jump)


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
    return paths.run_dir(fleet) / "drift.json"


def keep(fleet: str, reports: Mapping[str, Report], run_pid: int) -> None:
    """Leaves the drift for the inventory of the same run; no other run takes it for its own.

    A run may ask some hosts again: what it has found of the others stays.
    """
    now = {host: [item.record() for item in report.drift] for host, report in reports.items()}
    data = {"run": _process_identity(run_pid), "hosts": {**_kept(fleet, run_pid), **now}}
    write_atomically(_file(fleet), json.dumps(data, indent=1) + "\n")


def kept(fleet: str) -> Mapping[str, frozenset[str]]:
    """Host -> roles that it needs, as this very process has found; empty when it has not probed."""
    return {host: frozenset(item["role"] for item in items) for host, items in _kept(fleet).items()}


def idle(site: Site) -> frozenset[str]:
    """The serving hosts on which no instance runs, as this very process has found: nobody misses them."""
    found = _kept(site.plan.fleet)
    return frozenset(
        host.plan.name
        for host in site.hosts
        if host.plan.name in found
        and (instances := {i["name"] for i in host.manifest.items if i["kind"] == "unit" and "@" in i["name"]})
        and instances
        <= {i["what"] for i in found[host.plan.name] if i["kind"] == "unit" and i["why"].startswith(_NOT_RUNNING)}
    )


def _kept(fleet: str, run_pid: int | None = None) -> Mapping[str, list[dict[str, str]]]:
    try:
        data = json.loads(_file(fleet).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    if data["run"] != _process_identity(run_pid or os.getpid()):
        return {}
    hosts: Mapping[str, list[dict[str, str]]] = data["hosts"]
    return hosts
