"""Action plugin: takes a host out of traffic at every gateway, or gives the traffic back."""

from __future__ import annotations

import asyncio
import fnmatch
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ansible import constants as C  # noqa: N812 - Ansible's own name for it
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import connection_loader

from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge.connection import JumpHosts
from vllm_fleet.host.haproxy import ITSELF_SERVER
from vllm_fleet.operate import ansible_options, run_owner
from vllm_fleet.operate.rollout.programs import CommandError, Programs
from vllm_fleet.operate.rollout.traffic import Traffic


class ActionModule(ActionBase):
    """``fleet_traffic:`` with ``state`` C(drained) or C(ready), for the servers of ``host`` at all ``gateways``.

    A ``host`` that is one of the ``gateways`` leaves the traffic of the balancers before it: its /healthz is red.
    If a gateway gives no answer, or requests do not end within ``wait_seconds``, the servers get their traffic back at
    the others, and the task fails. After ``lease_seconds`` the gateways end a drain by themselves.
    """

    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset(
        {"host", "state", "gateways", "expected", "wait_seconds", "lease_seconds", "reason", "kind", "known"}
    )

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Sets the state; the result reports the change."""
        result = super().run(tmp, task_vars)
        given, arguments = task_vars or {}, self._task.args
        state, host = str(arguments.get("state")), str(arguments["host"])
        if state not in ("drained", "ready"):
            return {**result, "failed": True, "msg": f"state is {state!r}, not drained, ready"}
        gateways = [str(name) for name in arguments.get("gateways") or ()]
        try:
            changed = asyncio.run(self._set(state, host, gateways, given["hostvars"]))
        except FleetError as fault:
            return {**result, "failed": True, "msg": str(fault)}
        except CommandError as fault:
            told = f"{host} was not touched and has its traffic: {fault}" if state == "drained" else str(fault)
            return {**result, "failed": True, "msg": told}
        return {**result, "changed": changed}

    async def _set(self, state: str, host: str, gateways: Sequence[str], hostvars: Mapping[str, Any]) -> bool:
        connection_loader.get("ssh", class_only=True)  # its options are known from now on
        arguments = self._task.args
        asked = self._play_context.become_pass
        targets = ansible_options.targets_of_run(gateways, hostvars, C.config.get_config_value, asked)
        reason, kind = str(arguments.get("reason") or "a change of the host"), str(arguments.get("kind") or "run")
        wait, lease = (float(arguments.get(f"{name}_seconds") or 0) for name in ("wait", "lease"))
        servers = [f"{host}_*"]
        if host in gateways:
            # The gateway itself: balancers before it send it nothing while it is drained.
            servers, gateways = [ITSELF_SERVER], [host]
        async with JumpHosts() as jump_hosts:
            traffic = Traffic(Programs(targets, jump_hosts), run_owner.name_run(os.getppid()), reason, lease, kind)
            seen = await traffic.look(gateways)
            found = [
                server
                for each in seen.values()
                for server in each.servers.values()
                if any(fnmatch.fnmatchcase(server.name, pattern) for pattern in servers)
            ]
            if arguments.get("known") and not found:
                raise FleetError(
                    f"no gateway has a server of {host}: nothing was changed",
                    "check the name: 'vllm-fleet plan' lists the hosts",
                )
            if self._task.check_mode:
                return any(server.drained != (state == "drained") for server in found)
            if state == "drained":
                return await traffic.drain(gateways, servers, wait)
            return await traffic.ready(gateways, servers, list(arguments.get("expected") or ()), wait)
