"""Action plugin: ends the run for a host that it has skipped, as Ansible does for a host that it cannot reach."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from vllm_fleet.operate import drift


class ActionModule(ActionBase):
    """``fleet_skipped:`` names the host and why it gave no answer; the recap counts it as unreachable."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset[str]()

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Reports the host as unreachable."""
        result = super().run(tmp, task_vars)
        given = task_vars or {}
        site = drift.load_site_of_run(Path(str(given["inventory_dir"])).resolve())
        why = drift.find_skipped_hosts(site.plan.fleet, os.getppid()).get(str(given["inventory_hostname"]))
        if why:
            raise AnsibleConnectionFailure(f"was skipped, so it was not changed: {why} (repair it and run again)")
        return result
