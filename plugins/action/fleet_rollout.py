"""Action plugin: takes the hosts of a batch through a step of a rollout, in one task and one process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh  # noqa: F401 - loaded once for a run: each step works in a process of its own, which begins as a copy
from ansible import constants as C  # noqa: N812 - Ansible's own name for it
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import connection_loader
from ansible.utils.display import Display

from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge.connection import JumpHosts
from vllm_fleet.operate import ansible_options, run_owner
from vllm_fleet.operate.rollout import report
from vllm_fleet.operate.rollout.batch import Batch, Limits
from vllm_fleet.operate.rollout.hosts import REFUSED, Progress, RolloutHost, host_of_variables, tell_refused
from vllm_fleet.operate.rollout.programs import Programs
from vllm_fleet.operate.rollout.record import EVENT_MARK, Record, find_record, open_record

#: How soon it is noticed that the run was killed.
_LOOK_SECONDS = 0.5
Found = Mapping[str, Progress]


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

    ``begun`` only says whether the run goes on with this batch. ``stopped`` takes what must restart out of traffic and
    stops it; ``started`` starts and proves it, or goes back; ``serving`` accepts it and returns the traffic, and fails
    if a host has gone back. ``before`` is the result of the step before.
    """

    BYPASS_HOST_LOOP = True
    _record: Record = Record()
    TRANSFERS_FILES = False
    _requires_connection = False
    _VALID_ARGS = frozenset({"state", "before", "drain_seconds", "ready_seconds"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns ``hosts``: what has become of each host of the batch."""
        result = super().run(tmp, task_vars)
        given, arguments = task_vars or {}, self._task.args
        states: dict[str, Callable[..., Any]] = {
            "begun": _begin,
            "stopped": Batch.stop,
            "started": Batch.start,
            "serving": Batch.finish,
        }
        step = states.get(str(arguments.get("state")))
        if step is None:
            return {**result, "failed": True, "msg": f"state is {arguments.get('state')!r}, not {', '.join(states)}"}
        names = [str(name) for name in given["ansible_play_batch"]]
        every = [str(name) for name in given["ansible_play_hosts_all"]]
        hostvars = given["hostvars"]
        before = {
            name: Progress.parse(record)
            for name, record in ((arguments.get("before") or {}).get("hosts") or {}).items()
        }
        try:
            self._record = self._open_record(names, every, hostvars)
            if boolean(given.get("fleet_rollout_events", False)):
                # The controller of a worker reads them in its output.
                self._record.on_line = lambda line: Display().display(f"{EVENT_MARK}{line}")
                if step is _begin and names[0] == every[0]:
                    self._record.repeat_run()
            if step is _begin and not self._task.check_mode and (why := pauses(given)):
                left = every[every.index(names[0]) :]
                self._record.write("left", hosts=left)
                self._end("paused", why)
                return {**result, "paused": True, "msg": f"{why}: {len(left)} hosts are left as they are"}
            hosts = [host_of_variables(name, hostvars[name], given["groups"]) for name in names]
            found = asyncio.run(self._step(hosts, hostvars, step, before))
        except FleetError as fault:
            self._end("failed", str(fault))
            return {**result, "failed": True, "msg": str(fault)}
        if step is _begin:
            return {**result, "paused": False}
        result["hosts"] = {name: progress.record() for name, progress in found.items()}
        result["changed"] = any(progress.changed for progress in found.values())
        failed = {name: progress for name, progress in found.items() if progress.state in REFUSED}
        if arguments["state"] == "serving":
            self._record.write_outcomes(found)
            if failed:
                told = "\n".join(
                    tell_refused(name, progress.state, progress.gate, progress.why) for name, progress in failed.items()
                )
                self._end("refused", told)
                result |= {"failed": True, "msg": told}
            elif every[-1] in names:
                self._end("done")
        if self._record.fault:
            Display().warning(self._record.fault)
        return result

    def _open_record(self, names: list[str], every: list[str], hostvars: Mapping[str, Any]) -> Record:
        """The record of each fleet of the batch; at the first and the last batch, and at a pause, that of all fleets.

        Roles that are used without a fleet have none.
        """
        fleets = _fleets(names, hostvars)
        known = all(find_record(fleet, os.getppid()) for fleet in fleets)
        if not known or every[-1] in names or self._task.args["state"] == "begun":
            fleets = _fleets(every, hostvars)
        return open_record(fleets, os.getppid(), check=bool(self._task.check_mode))

    def _end(self, state: str, why: str = "") -> None:
        self._record.write("ended", state=state, why=why)
        for fault in report.write_reports(self._record):
            Display().warning(fault)

    async def _step(
        self, hosts: list[RolloutHost], hostvars: Mapping[str, Any], step: Callable[..., Any], before: Found
    ) -> Found:
        connection_loader.get("ssh", class_only=True)  # its options are known from now on
        gateways = dict.fromkeys(name for host in hosts for name in host.gateways)
        asked = self._play_context.become_pass
        names = [*(host.name for host in hosts), *gateways]
        targets = ansible_options.targets_of_run(names, hostvars, C.config.get_config_value, asked)
        limits = Limits(
            drain=float(self._task.args.get("drain_seconds", Limits.drain)),
            ready=float(self._task.args.get("ready_seconds", Limits.ready)),
        )
        async with JumpHosts() as jump_hosts, ends_with_parent():
            owner = run_owner.name_run(os.getppid())
            told = {name for name, progress in before.items() if progress.log}
            batch = Batch(hosts, Programs(targets, jump_hosts), owner, limits, self._record)
            if step is _begin:
                return await _begin(batch, count=not self._task.check_mode)
            if self._task.check_mode:
                done: Found = before or await batch.look()
            elif step is Batch.stop:
                done = await batch.stop()
            else:
                done = await step(batch, {host.name: before.get(host.name, Progress()) for host in hosts})
            if step is Batch.finish and not self._task.check_mode:
                await batch.count(batch_ends=True)
        for name, progress in done.items():
            for line in progress.log if name not in told else ():
                Display().display(f"  {name}: {line}", color="red")
        for name, cache in batch.caches.items():
            for line in cache.notes:
                Display().display(f"  {name}: {line}")
            for line in cache.warnings:
                Display().warning(f"{name}: {line}")
        return done


def pauses(given: Mapping[str, Any]) -> str:
    """Why the run ends before this batch; empty if it goes on.

    Args:
        given: the variables of the task. ``fleet_rollout_stop`` is a file whose presence ends the run,
            ``fleet_rollout_pause_after: canary`` ends it after the first batch.
    """
    stop, pause = given.get("fleet_rollout_stop"), given.get("fleet_rollout_pause_after")
    if pause not in (None, "canary"):
        raise FleetError(f"fleet_rollout_pause_after is {pause!r}", "write canary")
    if stop and Path(str(stop)).exists():
        return "the rollout was asked to end"
    if pause and given["ansible_play_batch"][0] != given["ansible_play_hosts_all"][0]:
        return "the first batch was accepted"
    return ""


async def _begin(batch: Batch, *, count: bool) -> Found:
    batch.record.write("batch", hosts=[host.name for host in batch.hosts])
    if count:
        await batch.count(batch_ends=False)
    return {}


def _fleets(names: list[str], hostvars: Mapping[str, Any]) -> dict[str, list[str]]:
    fleets: dict[str, list[str]] = {}
    for name in names:
        if fleet := hostvars[name].get("fleet_name"):
            fleets.setdefault(str(fleet), []).append(name)
    return fleets
