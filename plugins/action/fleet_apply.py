"""Action plugin: applies drifted items in place, on all hosts of the play, in one task and one process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ansible import constants as C  # noqa: N812 - Ansible's own name for it
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import connection_loader
from ansible.utils.display import Display

from vllm_fleet import inventory
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.facts.host_answer import Applied
from vllm_fleet.operate import ansible_options, apply, drift


class ActionModule(ActionBase):
    """``fleet_apply:`` applies what this run has found to differ, and probes again the hosts that it has changed.

    The inventory of the run has only the roles that are still needed then. In check mode the tasks of the roles report
    what would change, so it does nothing.
    """

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset[str]()

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns ``applied``: host -> the names of items."""
        result = super().run(tmp, task_vars)
        if self._task.check_mode:
            return {**result, "skipped": True, "msg": "the roles report what would change"}
        given = task_vars or {}
        applied: dict[str, list[str]] = {}
        diffs: list[Mapping[str, Any]] = []
        try:
            for site, variables in ansible_options.hosts_by_fleet(
                map(str, given["ansible_play_hosts_all"]), given["hostvars"]
            ):
                answers = self._apply(site, variables)
                changed = {name: answer for name, answer in answers.items() if answer.applied}
                applied |= {name: list(answer.applied) for name, answer in changed.items()}
                diffs += [diff for name, answer in changed.items() for diff in apply.diffs_of(name, answer)]
        except FleetError as fault:
            return {**result, "failed": True, "msg": str(fault)}
        count = sum(map(len, applied.values()))
        msg = f"{count} items of {len(applied)} hosts were applied in place"
        return {**result, "changed": bool(applied), "applied": applied, "diff": diffs, "msg": msg}

    def _apply(self, site: inventory.Site, variables: Mapping[str, Any]) -> dict[str, Applied]:
        """Applies the work of the hosts of one fleet; saves what still differs on those that have changed."""
        run = os.getppid()
        drifted = drift.find_drift(site.plan.fleet, run)
        idle = drift.find_idle_hosts(site, run)
        works = {
            host.plan.name: apply.plan_work(host, drifted[host.plan.name], idle=host.plan.name in idle)
            for host in site.hosts
            if host.plan.name in variables and host.plan.name in drifted
        }
        names = [name for name, work in works.items() if work.items]
        if not names:
            return {}
        connection_loader.get("ssh", class_only=True)  # its options are known from now on
        targets: Mapping[str, Target] = ansible_options.targets_of_fleet(
            site, {name: variables[name] for name in names}, C.config.get_config_value, self._play_context.become_pass
        )
        found = apply.apply_work([(targets[name], works[name]) for name in names], diff=bool(self._task.diff))
        answers: dict[str, Applied] = {}
        for name, answer in found.items():
            if isinstance(answer, str):
                Display().warning(f"{name}: {answer}; the tasks of its roles run")
                continue
            for item, why in answer.left.items():
                Display().warning(f"{name}: {item} was not applied in place: {why}; the tasks of its roles run")
            answers[name] = answer
        reports = drift.probe_site(site, {name: targets[name] for name, answer in answers.items() if answer.applied})
        # A host that is gone meanwhile keeps its drift: its roles say so.
        drift.save_drift(site.plan.fleet, {name: each for name, each in reports.items() if not each.error}, run)
        return answers
