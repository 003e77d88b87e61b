"""Action plugin: writes down on every host of the play what is there before the first role."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from vllm_fleet.base.errors import FleetError
from vllm_fleet.operate import drift, leave


class ActionModule(ActionBase):
    """``fleet_record:`` extends the record of each host; with ``--check`` it only names the hosts."""

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset[str]()

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Records, fleet by fleet."""
        result = super().run(tmp, task_vars)
        given = task_vars or {}
        names = {str(name) for name in given["ansible_play_hosts_all"]}
        folders = sorted({str(given["hostvars"][name]["inventory_dir"]) for name in names})
        changed: list[str] = []
        errors: list[FleetError] = []
        try:
            for site in map(drift.load_site_of_run, [Path(folder).resolve() for folder in folders]):
                hosts = [
                    (drift.host_target(site, host), host.manifest) for host in site.hosts if host.plan.name in names
                ]
                recorded, failed = leave.record_hosts(hosts, check=bool(self._task.check_mode))
                changed += recorded
                errors += failed
        except FleetError as error:
            errors.append(error)
        result |= {"changed": bool(changed), "msg": f"{len(changed)} records changed"}
        if errors:
            result |= {"failed": True, "msg": "\n".join(map(str, errors))}
        return result
