"""Action plugin: probes every host of the play from the controller, in one task and one process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ansible import constants as C  # noqa: N812 - Ansible's own name for it
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import connection_loader
from ansible.utils.display import Display

from vllm_fleet import inventory
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import ssh_target
from vllm_fleet.operate import ansible_options, drift, run_lock
from vllm_fleet.operate.rollout import record


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
            sites = list(ansible_options.hosts_by_fleet(map(str, given["ansible_play_hosts_all"]), given["hostvars"]))
            if not self._task.check_mode:
                for fleet, _ in sites:
                    run_lock.take(fleet.plan.fleet, os.getppid())
            probed = [
                (fleet.plan.fleet, drift.probe_site(fleet, self._targets(fleet, variables)))
                for fleet, variables in sites
            ]
            # A rollout that was asked to end has not changed them.
            left = {name for fleet, _ in sites for name in record.find_left_hosts(fleet.plan.fleet, os.getppid())}
        except FleetError as fault:
            return {**result, **_refusal([fault])}
        reports = {host: report for _, answers in probed for host, report in answers.items()}
        skipped = {host for host, report in reports.items() if report.error} if unreachable == "skip" else set()
        errors = drift.blocking_errors({host: report for host, report in reports.items() if host not in skipped})
        if errors:
            return {**result, **_refusal(errors)}
        items = [item for report in reports.values() for item in report.drift]
        for item in items:
            Display().display(f"  {item}", color="yellow")
        for host in sorted(skipped):
            Display().warning(f"{host} is skipped: {reports[host].error}")
        for name, answers in probed:
            drift.save_drift(name, answers, os.getppid())
        result |= {"changed": False, "drift": [item.record() for item in items]}
        expected = [item for item in items if item.host in left or drift.is_for_the_user(item.state)]
        if len(items) > len(expected) and self._task.args.get("expect_clean"):
            wrong = [item for item in items if item not in expected]
            roles = ", ".join(sorted({item.role for item in wrong}))
            listed = "\n".join(map(str, wrong))
            result |= {"failed": True, "msg": f"these items still differ after {roles}:\n{listed}"}
        else:
            result["msg"] = (
                f"{len(reports) - len(skipped)} hosts probed, {len(items)} items of "
                f"{len({item.host for item in items})} drifted{f', {len(skipped)} skipped' if skipped else ''}"
            )
        return result

    def _targets(self, fleet: inventory.Site, variables: Mapping[str, Any]) -> dict[str, ssh_target.Target]:
        connection_loader.get("ssh", class_only=True)  # its options are known from now on
        asked = self._play_context.become_pass
        return ansible_options.targets_of_fleet(fleet, variables, C.config.get_config_value, asked)


def _refusal(errors: Sequence[FleetError]) -> dict[str, Any]:
    """The result of a task that refuses: its text for people, and its errors for programs."""
    return {"failed": True, "msg": "\n".join(map(str, errors)), "errors": [error.record() for error in errors]}
