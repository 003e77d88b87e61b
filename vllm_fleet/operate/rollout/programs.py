"""Calls ``vllm-release`` on serving hosts and ``vllm-gateway`` on gateways, all over SSH from one process."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.foreign_text import Foreign, ForeignPart, UnreadableError
from vllm_fleet.edge import remote_answer, ssh
from vllm_fleet.edge.connection import CommandFailedError, JumpHosts, NoAnswerError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.facts.rollout_answer import Failed, parse_answer

RELEASE = "/usr/local/libexec/vllm-release"
GATEWAY = "/usr/local/libexec/vllm-gateway"
#: A host whose network is gone for less than this is asked again; every command may be repeated.
PATIENCE_SECONDS = 120.0
_PAUSE_SECONDS = 2.0
#: Connections at the same time: a command may wait as long as a large model needs to start.
_CONNECTIONS = 1000
Answer = TypeVar("Answer", bound=Foreign | ForeignPart)


@dataclass
class CommandError(Exception):
    """What a host says it cannot do, or that it gives no answer.

    Attributes:
        host: the host.
        text: why, without control characters.
        log: the end of what an instance has logged.
        owner: the run that is in the way; empty if none is.
        silent: whether the host gave no answer, so that it is unknown what it has done.
        absent: whether the host does not have the program, which a role installs.
    """

    host: str
    text: str
    log: tuple[str, ...] = ()
    owner: str = ""
    silent: bool = False
    absent: bool = False

    def __str__(self) -> str:
        return f"{self.host}: {self.text}"

    def error(self) -> FleetError:
        """The error for the user."""
        return FleetError(self.text, "", host=self.host, code=ErrorCode.WORK_FAILED)


@dataclass
class Programs:
    """The hosts of a run, and the SSH gateways that the connections to them share.

    Attributes:
        targets: host name -> how to reach it.
        patience_seconds: how long a host that gives no answer is asked again.
    """

    targets: Mapping[str, Target]
    jump_hosts: JumpHosts
    patience_seconds: float = PATIENCE_SECONDS
    _gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CONNECTIONS))

    async def call(
        self, host: str, program: str, command: str, question: Mapping[str, Any], kind: type[Answer]
    ) -> Answer:
        """Runs a command of a program on a host, as root.

        Args:
            host: the name of the host.
            program: :data:`RELEASE` or :data:`GATEWAY`.
            command: its command; it may run twice if the connection ends in between.
            question: its standard input.
            kind: the record of its answer.

        Raises:
            CommandError: the program cannot do it, or the host gives no answer that can be read.
        """
        target = self.targets[host]
        absent = json.dumps({"fault": f"{program} is not installed", "absent": True})
        script = f"[ -x {program} ] || {{ echo {shlex.quote(absent)}; exit; }}; exec {program} {command}"
        words = f"sh -c {shlex.quote(script)}"
        if target.user != "root":
            words = remote_answer.sudo_command(words, password=target.become_password is not None)
        return await self._ask(host, words, question, kind)

    async def run_packed(
        self,
        host: str,
        source: str,
        question: Mapping[str, Any],
        kind: type[Answer],
        files: remote_answer.Files = remote_answer.NO_FILES,
    ) -> Answer:
        """Runs a program of :mod:`vllm_fleet.on_host` on a host, as root.

        Args:
            host: the name of the host.
            source: the program, as :func:`vllm_fleet.edge.ssh.pack_program` returns it.
            question: its standard input.
            kind: the record of its answer.
            files: what follows the question, and where the bytes of a file in the answer go.

        Raises:
            CommandError: the host gives no answer that can be read.
            OSError: a file cannot be read or written here.
        """
        target = self.targets[host]
        words = ssh.python_command(target.user, source, password=target.become_password is not None)
        return await self._ask(host, words, question, kind, files)

    async def _ask(
        self,
        host: str,
        words: str,
        question: Mapping[str, Any],
        kind: type[Answer],
        files: remote_answer.Files = remote_answer.NO_FILES,
    ) -> Answer:
        """Asks again while the host gives no answer: every question may be asked twice."""
        deadline = time.monotonic() + self.patience_seconds
        asked = f"{json.dumps(question)}\n"
        while True:
            try:
                async with self._gate:
                    text = await ssh.run_json(self.targets[host], words, asked, self.jump_hosts, files)
                answer = parse_answer(kind, text)
            except UnreadableError as fault:
                raise CommandError(host, f"gave an answer that cannot be read: {fault}") from None
            except CommandFailedError as fault:
                raise CommandError(host, str(fault)) from None
            except NoAnswerError as fault:
                if time.monotonic() >= deadline:
                    raise CommandError(host, str(fault), silent=True) from None
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            if isinstance(answer, Failed):
                raise CommandError(host, answer.fault, tuple(answer.log), answer.owner, absent=answer.absent)
            return answer
