"""Runs a program of ``on_host`` on several hosts at a time and returns what each of them prints."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.edge import ssh
from vllm_fleet.edge.connection import CONCURRENCY, JumpHosts, NoAnswerError
from vllm_fleet.edge.ssh_target import Target

#: A host may have terabytes to remove.
SECONDS = 1800.0


def run_on_hosts(
    program: Sequence[str], questions: Sequence[tuple[Target, Mapping[str, Any]]]
) -> tuple[Mapping[str, Mapping[str, Any]], list[FleetError]]:
    """The answers of hosts, and an error for each host that gave none.

    Args:
        program: the module to run, then those that it imports.
        questions: each host with what the program reads.
    """
    return asyncio.run(_run_on_all(program, questions))


async def _run_on_all(
    program: Sequence[str], questions: Sequence[tuple[Target, Mapping[str, Any]]]
) -> tuple[Mapping[str, Mapping[str, Any]], list[FleetError]]:
    gate = asyncio.Semaphore(CONCURRENCY)
    answers: dict[str, Mapping[str, Any]] = {}
    errors: list[FleetError] = []

    async def run_on_host(target: Target, question: Mapping[str, Any], jump_hosts: JumpHosts) -> None:
        name, *modules = program
        request = (target, ssh.python_command(target.user, ssh.pack_program(name, *modules)), json.dumps(question))
        response = ssh.run_json_openssh(*request) if target.command else ssh.run_json(*request, jump_hosts)
        try:
            async with gate:
                answers[target.name] = json.loads(await asyncio.wait_for(response, SECONDS))
        except (NoAnswerError, TimeoutError, ValueError) as fault:
            message = str(fault) or f"no answer from {target.address} within {SECONDS:.0f} s"
            errors.append(FleetError(message, "repair it and run again", host=target.name, code=ErrorCode.WORK_FAILED))

    async with JumpHosts() as jump_hosts:
        await asyncio.gather(*(run_on_host(target, question, jump_hosts) for target, question in questions))
    return answers, errors
