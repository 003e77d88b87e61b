"""Action plugin: takes the hosts of a batch through a step of a rollout, in one task and one process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from ansible import constants as C  # noqa: N812 - Ansible's own name for it
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import connection_loader
from ansible.utils.display import Display

from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge.connection import JumpHosts
from vllm_fleet.operate import ansible_options, run_owner
from vllm_fleet.operate.rollout.batch import Batch, Limits
from vllm_fleet.operate.rollout.hosts import Progress, RolloutHost, host_of_variables
from vllm_fleet.operate.rollout.programs import Programs

#: How soon it is noticed that the run was killed.
_LOOK_SECONDS = 0.5
#: State of a host that does not serve the release -> what is told of it.
_FAILED = {
    "untouched": "was not touched, and has its traffic",
    "returned": "serves its last good release, since the new one was refused",
    "failed": "does not serve",
}
Found = Mapping[str, Progress]


def ssh_options_of(variables: Any) -> Callable[[str], Any]:
    """Reads the options with which Ansible's own connection plugin would reach a host.

    Args:
        variables: the variables of the host.
    """
    return partial(C.config.get_config_value, plugin_type="connection", plugin_name="ssh", variables=variables)


@asynccontextmanager
async def ends_with_parent() -> AsyncIterator[None]:
    """Ends the work when the run is killed: another run takes over then, and this process would go on alone."""
    parent, work = os.getppid(), asyncio.current_task()

    async def watch() -> None:
        while os.getppid() == parent:
            await asyncio.sleep(_LOOK_SECONDS)
        if work:
            work.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        watching.cancel()


class ActionModule(ActionBase):
    """``fleet_rollout:`` brings the hosts of the batch to ``state``.

    ``stopped`` takes what must restart out of traffic and stops it; ``started`` starts and proves it, or goes back;
    ``serving`` accepts it and returns the traffic, and fails if a host has gone back. ``before`` is the result of the
    step before.
    """

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset({"state", "before", "drain_seconds", "ready_seconds"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns ``hosts``: what has become of each host of the batch."""
        result = super().run(tmp, task_vars)
        given, arguments = task_vars or {}, self._task.args
        states: dict[str, Callable[..., Any]] = {"stopped": Batch.stop, "started": Batch.start, "serving": Batch.finish}
        step = states.get(str(arguments.get("state")))
        if step is None:
            return {**result, "failed": True, "msg": f"state is {arguments.get('state')!r}, not {', '.join(states)}"}
        names = [str(name) for name in given["ansible_play_batch"]]
        hostvars = given["hostvars"]
        hosts = [host_of_variables(name, hostvars[name], given["groups"]) for name in names]
        before = {
            name: Progress.parse(record)
            for name, record in ((arguments.get("before") or {}).get("hosts") or {}).items()
        }
        try:
            found = asyncio.run(self._step(hosts, hostvars, step, before))
        except FleetError as fault:
            return {**result, "failed": True, "msg": str(fault)}
        result["hosts"] = {name: progress.record() for name, progress in found.items()}
        result["changed"] = any(progress.changed for progress in found.values())
        failed = {name: progress for name, progress in found.items() if progress.state in _FAILED}
        if arguments["state"] == "serving" and failed:
            result |= {"failed": True, "msg": "\n".join(_told(name, progress) for name, progress in failed.items())}
        return result

    async def _step(
        self, hosts: list[RolloutHost], hostvars: Mapping[str, Any], step: Callable[..., Any], before: Found
    ) -> Found:
        connection_loader.get("ssh", class_only=True)  # its options are known from now on
        gateways = dict.fromkeys(name for host in hosts for name in host.gateways)
        asked = self._play_context.become_pass
        names = [*(host.name for host in hosts), *gateways]
        targets = ansible_options.targets_of_run(names, hostvars, ssh_options_of, asked)
        limits = Limits(
            drain=float(self._task.args.get("drain_seconds", Limits.drain)),
            ready=float(self._task.args.get("ready_seconds", Limits.ready)),
        )
        async with JumpHosts() as jump_hosts, ends_with_parent():
            batch = Batch(hosts, Programs(targets, jump_hosts), run_owner.name_run(os.getppid()), limits)
            if self._task.check_mode:
                done: Found = before or await batch.look()
            elif step is Batch.stop:
                done = await batch.stop()
            else:
                done = await step(batch, {host.name: before.get(host.name, Progress()) for host in hosts})
        for name, progress in done.items():
            for line in progress.log:
                Display().display(f"  {name}: {line}", color="red")
        return done


def _told(name: str, progress: Progress) -> str:
    gate = f" at the gate {progress.gate}" if progress.gate else ""
    return f"{name} {_FAILED[progress.state]}{gate}: {progress.why}"
