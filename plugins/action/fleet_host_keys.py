"""Action plugin: gives every host of the play a new SSH host key, in one task and one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge.ssh_scan import fingerprint
from vllm_fleet.operate import become_password, drift, rotate_host_keys


class ActionModule(ActionBase):
    """``fleet_host_keys:`` rotates the keys of the play's hosts; with ``--check`` it only names the hosts."""

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset[str]()

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Rotates, fleet by fleet."""
        result = super().run(tmp, task_vars)
        given = task_vars or {}
        names = {str(name) for name in given["ansible_play_hosts_all"]}
        folders = {str(given["hostvars"][name]["inventory_dir"]) for name in names}
        if self._task.check_mode:
            return {**result, "changed": True, "msg": f"would rotate the keys of {', '.join(sorted(names))}"}
        errors: list[FleetError] = []
        done: dict[str, str] = {}
        try:
            for site in map(drift.load_site_of_run, [Path(folder).resolve() for folder in sorted(folders)]):
                targets = {
                    host.plan.name: drift.host_target(site, host, self._password(given["hostvars"][host.plan.name]))
                    for host in site.hosts
                    if host.plan.name in names
                }
                outcome = rotate_host_keys.rotate_keys(site, targets)
                done |= outcome.rotated
                errors += outcome.errors
        except FleetError as error:
            errors.append(error)
        for name, key in sorted(done.items()):
            Display().display(f"  {name}: {fingerprint(key)}", color="yellow")
        result |= {"changed": bool(done), "rotated": sorted(done), "msg": f"{len(done)} hosts have new keys"}
        if errors:
            result |= {"failed": True, "msg": "\n".join(map(str, errors))}
        return result

    def _password(self, variables: Any) -> str | None:
        return become_password.find_password(variables, self._play_context.become_pass)
