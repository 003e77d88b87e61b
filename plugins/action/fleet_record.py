"""Action plugin: writes down on all hosts of the play what is there before the first role, in one process."""

from __future__ import annotations

from typing import Any

import asyncssh  # noqa: F401 - loaded once for a run: each step works in a process of its own, which begins as a copy
from ansible import constants as C  # noqa: N812 - Ansible's own name for it
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import connection_loader

from vllm_fleet.base.errors import FleetError
from vllm_fleet.operate import ansible_options, leave


class ActionModule(ActionBase):
    """``fleet_record:`` extends the records of the hosts; ``--check`` changes nothing."""

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset[str]()

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns ``first_boot``: the hosts on which cloud-init may still be at work."""
        result = super().run(tmp, task_vars)
        given = task_vars or {}
        found: dict[str, leave.Recorded | FleetError] = {}
        connection_loader.get("ssh", class_only=True)  # its options are known from now on
        asked = self._play_context.become_pass
        try:
            fleets = ansible_options.hosts_by_fleet(map(str, given["ansible_play_hosts_all"]), given["hostvars"])
            for site, variables in fleets:
                targets = ansible_options.targets_of_fleet(site, variables, C.config.get_config_value, asked)
                manifests = {host.plan.name: host.manifest for host in site.hosts}
                works = [(target, manifests[name]) for name, target in targets.items()]
                found |= leave.record_hosts(works, check=bool(self._task.check_mode))
        except FleetError as error:
            return {**result, "failed": True, "msg": str(error)}
        errors = [each for each in found.values() if isinstance(each, FleetError)]
        recorded = {name: each for name, each in found.items() if isinstance(each, leave.Recorded)}
        result["changed"] = any(each.changed for each in recorded.values())
        result["first_boot"] = [name for name, each in recorded.items() if each.first_boot]
        if errors:
            records = [error.record() for error in errors]
            return {**result, "failed": True, "msg": "\n".join(map(str, errors)), "errors": records}
        return result
