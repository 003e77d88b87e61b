"""Action plugin: writes down on a host what is there before the first role."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from vllm_fleet.base.errors import FleetError
from vllm_fleet.operate import drift, leave


class ActionModule(ActionBase):
    """``fleet_record:`` extends the record of the host over Ansible's connection; ``--check`` changes nothing."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset[str]()

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Sends the items of the host's manifest to the program that records."""
        result = super().run(tmp, task_vars)
        given = task_vars or {}
        name = str(given["inventory_hostname"])
        try:
            site = drift.load_site_of_run(Path(str(given["inventory_dir"])).resolve())
            manifest = next(host.manifest for host in site.hosts if host.plan.name == name)
            question = leave.record_question(manifest, check=bool(self._task.check_mode))
            done = self._low_level_execute_command(  # type: ignore[no-untyped-call]
                leave.record_command(), in_data=question.encode()
            )
            changed = leave.parse_recorded(name, str(done["stdout"]), str(done["stderr"]))
        except FleetError as error:
            return {**result, "failed": True, "msg": str(error)}
        return {**result, "changed": changed}
