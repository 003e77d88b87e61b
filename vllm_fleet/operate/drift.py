"""Drift as a step of a run: hosts -> reports, the errors that stop the run, and the roles that each host needs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import ErrorCode, FleetError, raise_all
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.facts.states import FOR_THE_USER, NEIGHBOURS, NOT_RUNNING, DriftState
from vllm_fleet.fleet import host_facts, private_key
from vllm_fleet.inventory import Site, SiteHost
from vllm_fleet.inventory import load as load_site
from vllm_fleet.operate import probing
from vllm_fleet.operate.probing import Report

#: The variable with the gateways at which a role drains a host.
_GATEWAYS = "gateway_traffic_gateways"
#: What the role vllm_service installs once, besides the releases; and the states of units that systemd must read.
_INSTALLED = ("/etc/systemd/", "/usr/local/libexec/", "vllm-return.")
_UNREAD = (DriftState.NOT_RELOADED.value, DriftState.UNKNOWN_UNIT.value)


def load_site_of_run(directory: Path) -> Site:
    """Reads a fleet once for a process: the inventory, its refresh and the probe use the same plan.

    Only facts that hosts report can change it, since a rule may depend on them.

    Raises:
        FleetError: files of the fleet are missing or contradict each other.
    """
    return _site(directory, json.dumps(host_facts.load(directory.name), sort_keys=True))


@cache
def _site(directory: Path, facts: str) -> Site:
    del facts
    return load_site(directory)


def probe_site(
    site: Site, targets: Mapping[str, Target], on_report: Callable[[Report], None] = lambda _: None
) -> Mapping[str, Report]:
    """Probes hosts. A host whose facts change its plan is probed a second time, for the new one.

    Args:
        site: the fleet.
        targets: host name -> how to reach it, for the hosts to probe.
        on_report: called for each report, to show progress.

    Returns:
        Host name -> report.

    Raises:
        FleetError: a private key cannot be used, or the fleet's files have changed meanwhile and are wrong now.
    """
    raise_all(_key_errors(site, targets.values()))
    manifests = {host.plan.name: host.manifest for host in site.hosts if host.plan.name in targets}
    reports = dict(probing.probe_hosts([(targets[name], manifest) for name, manifest in manifests.items()], on_report))
    facts = {name: report.facts for name, report in reports.items() if report.facts}
    if host_facts.keep(site.plan.fleet, facts):
        now = load_site_of_run(site.plan.directory)
        changed = [
            (targets[host.plan.name], host.manifest)
            for host in now.hosts
            if host.plan.name in manifests and host.manifest != manifests[host.plan.name]
        ]
        reports |= probing.probe_hosts(changed)
    return reports


def _key_errors(site: Site, targets: Iterable[Target]) -> Iterator[FleetError]:
    """What is wrong with the private keys, each once: they are files of the controller, and no host can mend them."""
    ways = [way for target in targets for way in (target, target.jump) if way]
    for file in dict.fromkeys(way.key_file for way in ways if way.key_file):
        is_own = file == site.private_key_file
        if fault := private_key.fleet_error(site.plan) if is_own else private_key.file_error(file):
            yield fault


def host_target(site: Site, host: SiteHost) -> Target:
    """How to reach a host by the fleet's own files."""
    at, hop = host.location, site.jump(host)
    own = Target(
        host.plan.name,
        at.address,
        at.port,
        at.user,
        at.ssh_host_keys,
        site.private_key_file,
        site.ssh_config_file,
        alias=at.ssh_alias,
        authorities=tuple(site.plan.access.ssh_host_authorities),
        keys_file=at.keys_file or site.plan.document.file,
    )
    if hop is None:
        return own
    jump = Target(
        hop.name, hop.address, hop.port, hop.user, hop.host_keys, own.key_file, own.config_file, keys_file=hop.keys_file
    )
    return replace(own, jump=jump)


def blocking_errors(reports: Mapping[str, Report]) -> list[FleetError]:
    """The errors that stop a run: hosts that do not answer, and hosts that are not what their class says."""
    errors = []
    for report in reports.values():
        if report.error:
            hint = f"repair it, or leave it out with -e fleet_unreachable=skip or --limit 'all:!{report.host}'"
            errors.append(FleetError(report.error, hint, host=report.host, code=ErrorCode.WORK_FAILED))
        for veto in report.veto:
            hint = "" if veto.code in NEIGHBOURS else "correct host_class in fleet.yml or the host"
            errors.append(FleetError(veto.text, hint, host=report.host, code=ErrorCode.REFUSED))
    return errors


def _process_identity(pid: int) -> str:
    """A process by its number and its start time, since numbers are reused."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return f"{pid}-{fields[19]}"


def _file(fleet: str) -> Path:
    return paths.run_dir(fleet) / "drift.json"


def save_drift(fleet: str, reports: Mapping[str, Report], run_pid: int) -> None:
    """Saves the drift for the inventory of the same run. Another run ignores it.

    A run may probe some hosts again; the drift of the others stays. A host that gave no answer is one that the run
    skips.

    Args:
        fleet: the fleet's name.
        reports: host name -> report.
        run_pid: the process of the run.
    """
    before = _load_run(fleet, run_pid)
    answered = {host: [item.record() for item in report.drift] for host, report in reports.items() if not report.error}
    silent = {host: report.error for host, report in reports.items() if report.error}
    hosts = {**before["hosts"], **answered}
    skipped = {**before["skipped"], **silent}
    data = {
        "run": _process_identity(run_pid),
        "hosts": {host: items for host, items in hosts.items() if host not in silent},
        "skipped": {host: why for host, why in skipped.items() if host not in answered},
    }
    write_atomically(_file(fleet), json.dumps(data, indent=1) + "\n")


def find_drift(fleet: str, run_pid: int | None = None) -> Mapping[str, list[dict[str, str]]]:
    """Host name -> what differs on it, as this run has probed it; empty before the probe.

    Args:
        fleet: the fleet's name.
        run_pid: the process of the run; None is this process.
    """
    return _load_drift(fleet, run_pid)


def is_installed_once(item: Mapping[str, str]) -> bool:
    """Whether drift of the role vllm_service is that of what it installs besides the releases."""
    return item["what"].startswith(_INSTALLED)


def roles_to_run(fleet: str) -> Mapping[str, frozenset[str]]:
    """Host name -> roles that own drift on it, as this run has probed it; empty before the probe."""
    return {
        host: frozenset(item["role"] for item in items if not is_for_the_user(item["state"]))
        for host, items in _load_drift(fleet).items()
    }


def is_for_the_user(state: str) -> bool:
    """Whether no role repairs drift in this state, so that a run goes on with it."""
    return state in FOR_THE_USER


def find_idle_hosts(site: Site, run_pid: int | None = None) -> frozenset[str]:
    """The serving hosts on which no instance runs, as this run has probed them: a restart interrupts no request.

    Args:
        site: the fleet.
        run_pid: the process of the run; None is this process.
    """
    drift = _load_drift(site.plan.fleet, run_pid)
    return frozenset(
        host.plan.name
        for host in site.hosts
        if host.plan.name in drift
        and (instances := _instances(host))
        and instances <= _stopped_units(drift[host.plan.name])
    )


def _instances(host: SiteHost) -> frozenset[str]:
    """The units that serve. One that another one starts is not meant to run all the time, and is not among them."""
    return frozenset(
        item["name"]
        for item in host.manifest.items
        if item["kind"] == "unit" and "@" in item["name"] and item.get("active")
    )


def _stopped_units(items: Sequence[Mapping[str, str]]) -> frozenset[str]:
    return frozenset(
        item["what"] for item in items if item["kind"] == "unit" and DriftState(item["state"]) in NOT_RUNNING
    )


def find_skipped_hosts(fleet: str, run_pid: int | None = None) -> Mapping[str, str]:
    """Host name -> why it gave no answer, for the hosts that this run skips.

    Args:
        fleet: the fleet's name.
        run_pid: the process of the run; None is this process.
    """
    skipped: Mapping[str, str] = _load_run(fleet, run_pid)["skipped"]
    return skipped


def variables_of_run(
    host: SiteHost, skipped: Collection[str], drifted: Mapping[str, Sequence[Mapping[str, str]]]
) -> Mapping[str, Any]:
    """The variables of a host in a run: no role asks a skipped gateway, and none installs what is there.

    Args:
        host: the host.
        skipped: the names of the skipped hosts.
        drifted: host name -> what this run has found to differ; a host that was not probed is left out.
    """
    variables = dict(host.variables)
    if gateways := variables.get(_GATEWAYS):
        variables[_GATEWAYS] = [name for name in gateways if name not in skipped]
    items = drifted.get(host.plan.name)
    if items is not None and "vllm_service_release" in variables:
        variables["vllm_service_install"] = any(
            item["role"] == "vllm_service" and (is_installed_once(item) or item["state"] in _UNREAD) for item in items
        )
    return variables


def _load_drift(fleet: str, run_pid: int | None = None) -> Mapping[str, list[dict[str, str]]]:
    hosts: Mapping[str, list[dict[str, str]]] = _load_run(fleet, run_pid)["hosts"]
    return hosts


def _load_run(fleet: str, run_pid: int | None) -> Mapping[str, Any]:
    """What a run has saved; empty for another run, and without a file."""
    empty: Mapping[str, Any] = {"hosts": {}, "skipped": {}}
    try:
        data = json.loads(_file(fleet).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return empty
    if not isinstance(data, dict) or data.get("run") != _process_identity(run_pid or os.getpid()):
        return empty
    return {**empty, **data}
