"""Action plugin: reads the files that ``host_files`` writes from the folder ``files`` of the role."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """``host_files:`` with ``src`` in place of ``content`` for a file of the role."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Runs the module of the same name on the host."""
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        arguments["files"] = [self._with_content(dict(row)) for row in arguments.get("files") or ()]
        done = self._execute_module(module_name="host_files", module_args=arguments, task_vars=task_vars)
        return {**result, **done}

    def _with_content(self, row: dict[str, Any]) -> dict[str, Any]:
        if "src" in row:
            path = self._find_needle("files", str(row.pop("src")))  # type: ignore[no-untyped-call]
            row["content"] = Path(str(path)).read_text(encoding="utf-8")
        return row
