"""Action plugin: probes every host of the play from the controller, in one task and one process."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from vllm_fleet import inventory
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import ssh_target
from vllm_fleet.operate import become_password, drift


def hosts_by_fleet(task_vars: Mapping[str, Any]) -> Iterator[tuple[inventory.Site, dict[str, Any]]]:
    """Each fleet of the play with the variables of its hosts; one run may have several fleets.

    Args:
        task_vars: the variables of the task.
    """
    folders: dict[str, dict[str, Any]] = {}
    for name in map(str, task_vars["ansible_play_hosts_all"]):
        own = task_vars["hostvars"][name]
        folders.setdefault(str(own["inventory_dir"]), {})[name] = own
    for folder, variables in folders.items():
        yield drift.load_site_of_run(Path(folder).resolve()), variables


class ActionModule(ActionBase):
    """``fleet_probe:`` finds drift; ``expect_clean: true`` makes any drift a failure.

    ``unreachable`` is what a host without an answer does to the run: ``refuse`` ends it before anything changes,
    ``skip`` leaves the host out.
    """

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset({"expect_clean", "unreachable"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Reports the drift of the play's hosts and saves it for the inventory of this run."""
        result = super().run(tmp, task_vars)
        given = task_vars or {}
        unreachable = str(self._task.args.get("unreachable", "refuse"))
        if unreachable not in ("refuse", "skip"):
            return {**result, "failed": True, "msg": f"fleet_unreachable is {unreachable!r}: write refuse or skip"}
        try:
            probed = [
                (fleet.plan.fleet, drift.probe_site(fleet, self._targets(fleet, variables)))
                for fleet, variables in hosts_by_fleet(given)
            ]
        except FleetError as fault:
            return {**result, "failed": True, "msg": str(fault)}
        reports = {host: report for _, answers in probed for host, report in answers.items()}
        skipped = {host for host, report in reports.items() if report.error} if unreachable == "skip" else set()
        errors = drift.blocking_errors({host: report for host, report in reports.items() if host not in skipped})
        if errors:
            return {**result, "failed": True, "msg": "\n".join(map(str, errors))}
        items = [item for report in reports.values() for item in report.drift]
        for item in items:
            Display().display(f"  {item}", color="yellow")
        for host in sorted(skipped):
            Display().warning(f"{host} is skipped: {reports[host].error}")
        for name, answers in probed:
            drift.save_drift(name, answers, os.getppid())
        result |= {"changed": False, "drift": [item.record() for item in items]}
        if items and self._task.args.get("expect_clean"):
            roles = ", ".join(sorted({item.role for item in items}))
            listed = "\n".join(map(str, items))
            result |= {"failed": True, "msg": f"these items still differ after {roles}:\n{listed}"}
        else:
            result["msg"] = (
                f"{len(reports) - len(skipped)} hosts probed, {len(items)} items of "
                f"{len({item.host for item in items})} drifted{f', {len(skipped)} skipped' if skipped else ''}"
            )
        return result

    def _targets(self, fleet: inventory.Site, variables: Mapping[str, Any]) -> dict[str, ssh_target.Target]:
        members = {host.plan.name: host for host in fleet.hosts}
        return {name: self._target(fleet, members[name], own) for name, own in variables.items() if name in members}

    def _target(self, fleet: inventory.Site, host: inventory.SiteHost, variables: Any) -> ssh_target.Target:
        """The host as Ansible reaches it: variables of the inventory override the fleet's own files."""
        own = drift.host_target(fleet, host, become_password.find_password(variables, self._play_context.become_pass))
        extra = str(variables.get("ansible_ssh_common_args") or "")
        if extra == fleet.ssh_arguments(host):
            extra = ""  # the fleet's own gateway: one connection serves all hosts, without an 'ssh' for each
        arguments = shlex.split(extra) + shlex.split(str(variables.get("ansible_ssh_extra_args") or ""))
        through_ssh = any(word.lower().startswith(("proxycommand", "-j", "gssapi")) for word in arguments)
        key = variables.get("ansible_ssh_private_key_file") or variables.get("ansible_private_key_file")
        return ssh_target.Target(
            name=own.name,
            address=str(variables.get("ansible_host") or own.address),
            port=int(variables.get("ansible_port") or own.port),
            user=str(variables.get("ansible_user") or own.user),
            host_keys=own.host_keys,
            key_file=Path(str(key)).expanduser() if key else own.key_file,
            command=arguments if through_ssh else None,
            jump=None if through_ssh else own.jump,
            become_password=own.become_password,
        )
