"""Action plugin: removes what the toolkit has made on the one host of the play."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from vllm_fleet.base.errors import FleetError
from vllm_fleet.operate import drift, leave


class ActionModule(ActionBase):
    """``fleet_leave:`` with ``packages`` and ``keep_models``; with ``--check`` it only says what it would remove."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset({"packages", "keep_models"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Removes, and returns what it has removed and kept."""
        result = super().run(tmp, task_vars)
        given = task_vars or {}
        name = str(given["inventory_hostname"])
        options = leave.Options(
            check=bool(self._task.check_mode),
            packages=str(self._task.args.get("packages", "false")).lower() == "true",
            keep_models=str(self._task.args.get("keep_models", "false")).lower() == "true",
        )
        try:
            site = drift.load_site_of_run(Path(str(given["inventory_dir"])).resolve())
            host = next(host for host in site.hosts if host.plan.name == name)
            left = leave.leave_host(drift.host_target(site, host), options)
        except FleetError as error:
            return {**result, "failed": True, "msg": str(error)}
        return {
            **result,
            "changed": bool(left.removed),
            "removed": list(left.removed),
            "kept": [dict(row) for row in left.kept],
        }
