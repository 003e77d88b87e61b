"""Hosts back to the release before: a switch of what is on them already, in the batches of a rollout."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from vllm_fleet.base.errors import ErrorCode, FleetError, raise_all
from vllm_fleet.edge.connection import JumpHosts
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.facts.rollout_answer import Status, question
from vllm_fleet.fleet.batches import Member, plan_batches
from vllm_fleet.operate import run_lock, run_owner
from vllm_fleet.operate.rollout.batch import Batch
from vllm_fleet.operate.rollout.hosts import Progress, RolloutHost
from vllm_fleet.operate.rollout.programs import RELEASE, CommandError, Programs
from vllm_fleet.operate.rollout.record import Record, open_record
from vllm_fleet.operate.rollout.report import write_reports
from vllm_fleet.schema.gates import GateName
from vllm_fleet.schema.rollout import Rollout

#: What a release passes that was accepted on the host before: only that it serves. The log and the numbers of the
#: plan are those of the release that it takes the place of.
GATES: tuple[GateName, ...] = ("completion", "stream")


@dataclass(frozen=True)
class Order:
    """What goes back.

    Attributes:
        fleet: the fleet's name.
        hosts: the chosen hosts, as the plan has them.
        members: every serving host of the fleet; ``changes`` says whether it is chosen.
        targets: how to reach the hosts and their gateways.
        rollout: how many hosts of a model may be out of traffic.
    """

    fleet: str
    hosts: Sequence[RolloutHost]
    members: Sequence[Member]
    targets: Mapping[str, Target]
    rollout: Rollout


def roll_back(order: Order, ends: Callable[[], bool], on_step: Callable[[], None]) -> Mapping[str, Progress]:
    """Switches hosts to their last good release before the accepted one, batch by batch.

    Args:
        order: what goes back.
        ends: whether no further batch may begin; asked before each.
        on_step: called after each batch.

    Returns:
        What has become of the hosts whose batch has begun.

    Raises:
        FleetError: another run works on the fleet, or a host has no such release or gives no answer; nothing is
            touched.
    """
    return asyncio.run(_roll_back(order, ends, on_step))


async def _roll_back(order: Order, ends: Callable[[], bool], on_step: Callable[[], None]) -> Mapping[str, Progress]:
    run_lock.take(order.fleet, os.getpid())
    owner = run_owner.name_run(os.getpid())
    async with JumpHosts() as jump_hosts:
        programs = Programs(order.targets, jump_hosts)
        known = await _ask_status(programs, order.hosts, owner)
        hosts = {host.name: host_before(host, known[host.name]) for host in order.hosts}
        record = open_record({order.fleet: list(hosts)}, os.getpid(), "rollback")
        members = [
            replace(each, idle="active" not in known[each.name].states.values()) if each.name in known else each
            for each in order.members
        ]
        steps = [
            [hosts[name] for name in step.hosts]
            for step in plan_batches(members, replace_batches(order.rollout), canaries=False)
        ]
        return await _run_steps(steps, programs, record, ends, on_step)


async def _run_steps(
    steps: Sequence[Sequence[RolloutHost]],
    programs: Programs,
    record: Record,
    ends: Callable[[], bool],
    on_step: Callable[[], None],
) -> Mapping[str, Progress]:
    found: dict[str, Progress] = {}
    for number, hosts in enumerate(steps):
        if ends():
            record.write("left", hosts=[host.name for step in steps[number:] for host in step])
            record.write("ended", state="paused", why="it was asked to end")
            break
        batch = Batch(hosts, programs, run_owner.name_run(os.getpid()), record=record)
        record.write("batch", hosts=[host.name for host in hosts])
        await batch.count(batch_ends=False)
        done = await batch.finish(await batch.start(await batch.stop()))
        await batch.count(batch_ends=True)
        record.write_outcomes(done)
        found |= done
        refused = {name: progress for name, progress in done.items() if progress.state != "serving"}
        if refused:
            why = "\n".join(f"{name}: {progress.why}" for name, progress in refused.items())
            record.write("ended", state="refused", why=why)
        elif number == len(steps) - 1:
            record.write("ended", state="done")
        on_step()
        if refused:
            break
    write_reports(record)
    return found


async def _ask_status(programs: Programs, hosts: Sequence[RolloutHost], owner: str) -> dict[str, Status]:
    async def one(host: RolloutHost) -> Status | FleetError:
        try:
            status = await programs.call(host.name, RELEASE, "status", question(owner=owner), Status)
        except CommandError as fault:
            return _no_release(host.name) if fault.absent else fault.error()
        return status if status.previous else _no_release(host.name)

    answers = await asyncio.gather(*map(one, hosts))
    errors = [answer for answer in answers if isinstance(answer, FleetError)]
    raise_all(sorted(errors, key=lambda error: -error.exit_code))
    known = zip((host.name for host in hosts), answers, strict=True)
    return {name: answer for name, answer in known if isinstance(answer, Status)}


def _no_release(host: str) -> FleetError:
    return FleetError(
        "has no earlier release that was accepted, so it cannot go back",
        "choose the others with --host or --pool, or correct fleet.yml and roll out",
        host=host,
        code=ErrorCode.REFUSED,
    )


def host_before(host: RolloutHost, status: Status) -> RolloutHost:
    """A host with its release before in place of the planned one.

    Args:
        host: as the plan has it.
        status: what the host says of its releases.
    """
    gates = {**host.gates, "asked": list(GATES)} if host.gates else {}
    gates.pop("reference", None)
    return replace(
        host,
        release=status.previous or "",
        files={},
        instances=tuple(each.model_dump() for each in status.previous_instances),
        canary=False,
        prove=False,
        promises=(),
        gates=gates,
    )


def replace_batches(rollout: Rollout) -> Rollout:
    """The limits of a fleet without its steps: each host had the release before."""
    return rollout.model_copy(update={"batches": ["100%"]})
