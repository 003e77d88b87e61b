"""Action plugin: gives every host of the play a new SSH host key, in one task and one process."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ansible import constants as C  # noqa: N812 - Ansible's own name for it
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import connection_loader
from ansible.utils.display import Display

from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge.ssh_scan import fingerprint
from vllm_fleet.operate import ansible_options, become_password, drift, rotate_host_keys


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
        connection_loader.get("ssh", class_only=True)  # its options are known from now on
        read = partial(C.config.get_config_value, plugin_type="connection", plugin_name="ssh")
        folders = {str(given["hostvars"][name]["inventory_dir"]) for name in names}
        if self._task.check_mode:
            return {**result, "changed": True, "msg": f"would rotate the keys of {', '.join(sorted(names))}"}
        errors: list[FleetError] = []
        done: dict[str, str] = {}
        try:
            for site in map(drift.load_site_of_run, [Path(folder).resolve() for folder in sorted(folders)]):
                targets = {
                    name: replace(
                        ansible_options.target_of_run(site, host, partial(read, variables=given["hostvars"][name])),
                        become_password=self._password(given["hostvars"][name]),
                    )
                    for host in site.hosts
                    if (name := host.plan.name) in names
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
