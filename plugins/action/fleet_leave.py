"""Action plugin: removes what the toolkit has made on a host."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from vllm_fleet.base.errors import FleetError
from vllm_fleet.operate import leave


class ActionModule(ActionBase):
    """``fleet_leave:`` with ``packages`` and ``keep_models``; with ``--check`` it only says what it would remove."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset({"packages", "keep_models"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Removes, and returns what it has removed and kept."""
        result = super().run(tmp, task_vars)
        options = leave.Options(
            check=bool(self._task.check_mode),
            packages=bool(boolean(self._task.args.get("packages", False))),
            keep_models=bool(boolean(self._task.args.get("keep_models", False))),
        )
        done = self._low_level_execute_command(  # type: ignore[no-untyped-call]
            leave.leave_command(), in_data=leave.leave_question(options).encode()
        )
        try:
            name = str((task_vars or {})["inventory_hostname"])
            left = leave.parse_left(name, str(done["stdout"]), str(done["stderr"]))
        except FleetError as error:
            return {**result, "failed": True, "msg": str(error)}
        return {
            **result,
            "changed": bool(left.removed),
            "removed": list(left.removed),
            "kept": [dict(row) for row in left.kept],
        }
