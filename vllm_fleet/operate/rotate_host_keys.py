"""Gives the hosts of a fleet new SSH host keys over trusted connections. The next run completes an interrupted one.

Every host creates a key. Both keys are written down and trusted. The host installs the new one. A new connection that
accepts only that key proves it. Then the old key is removed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_fleet import inventory as sites
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.foreign_text import UnreadableError, parse_record
from vllm_fleet.edge import connection, ssh
from vllm_fleet.edge.connection import JumpHosts, NoAnswerError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.facts.host_answer import HostKeys
from vllm_fleet.fleet import host_keys_file
from vllm_fleet.fleet.host_keys_file import Shown
from vllm_fleet.inventory import Site

_SECONDS = 60.0
#: sshd reopens its sockets when it reloads its keys: meanwhile it may refuse a connection, or a process with the old
#: key may accept it.
_RELOAD_SECONDS = 15.0
_PAUSE_SECONDS = 0.3


@dataclass
class Outcome:
    """The result of a rotation.

    Attributes:
        rotated: host name -> its new key.
        errors: one error for each host that failed; its old key is still trusted.
    """

    rotated: dict[str, str] = field(default_factory=dict)
    errors: list[FleetError] = field(default_factory=list)


def rotate_keys(site: Site, targets: Mapping[str, Target]) -> Outcome:
    """Gives hosts new keys.

    Args:
        site: the fleet.
        targets: host name -> how to reach it now.
    """
    return asyncio.run(_Rotation(site).run(targets))


class _Rotation:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._outcome = Outcome()
        saved = host_keys_file.load(site.plan.directory)
        self._ids = {host.plan.name: host.location.id for host in site.hosts if host.location.id}
        self._keys = dict(host_keys_file.standing(saved, self._ids))

    async def run(self, targets: Mapping[str, Target]) -> Outcome:
        # An interrupted run is completed first: no host creates a third key.
        fresh = {name: len(self._keys.get(name, ())) < 2 for name in targets}
        made = await self._ask(targets.values(), {name: {"step": "make", "create": fresh[name]} for name in targets})
        for name, shown in made.items():
            self._keys[name] = host_keys_file.both(targets[name].host_keys, shown)
        self._publish()
        both_trusted = [self._trusting(targets[name], self._keys[name]) for name in made]
        taken = await self._ask(both_trusted, {name: {"step": "take"} for name in made})
        proving = [self._trusting(targets[name], (shown.current,)) for name, shown in taken.items()]
        looks = {name: {"step": "look"} for name in taken}
        for name, shown in (await self._ask(proving, looks, retry_seconds=_RELOAD_SECONDS)).items():
            self._keys[name] = (shown.current,)
            self._outcome.rotated[name] = shown.current
        self._publish()
        return self._outcome

    def _trusting(self, target: Target, keys: tuple[str, ...]) -> Target:
        """A target that trusts these keys, through a gateway whose own key may have changed in this run."""
        jump = target.jump and replace(target.jump, host_keys=self._keys.get(target.jump.name, target.jump.host_keys))
        return replace(target, host_keys=keys, jump=jump)

    async def _ask(
        self, targets: Any, questions: Mapping[str, Mapping[str, Any]], retry_seconds: float = 0.0
    ) -> Mapping[str, Shown]:
        """The answers of the hosts. Hosts that cannot be reached are tried again for ``retry_seconds``."""
        gate = asyncio.Semaphore(connection.CONCURRENCY)

        async def answer(target: Target, command: str, text: str) -> str:
            end = time.monotonic() + retry_seconds
            while True:
                try:
                    return await ssh.run_json(target, command, text, jump_hosts)
                except NoAnswerError:
                    if time.monotonic() >= end:
                        raise
                    await asyncio.sleep(_PAUSE_SECONDS)

        async def ask_host(target: Target) -> tuple[str, Shown] | None:
            password = target.become_password is not None
            command = ssh.python_command(target.user, ssh.pack_program("ssh_host_key"), password=password)
            text = json.dumps(questions[target.name])
            try:
                async with gate:
                    told = await asyncio.wait_for(answer(target, command, text), _SECONDS)
                # A line break in a key would be a line of 'known_hosts', for any host.
                keys = parse_record(HostKeys, told)
            except (NoAnswerError, UnreadableError, TimeoutError) as fault:
                message = str(fault) or f"no answer from {target.address} within {_SECONDS:.0f} s"
                hint = "run it again: both keys are trusted until a run completes the rotation"
                self._outcome.errors.append(FleetError(message, hint, host=target.name, code=ErrorCode.WORK_FAILED))
                return None
            return target.name, Shown(keys.current, keys.next)

        async with JumpHosts() as jump_hosts:
            return dict(filter(None, await asyncio.gather(*(ask_host(target) for target in targets))))

    def _publish(self) -> None:
        """Writes the keys to the fleet's file and to ``known_hosts``."""
        directory = self._site.plan.directory
        if self._keys:
            write_atomically(directory / host_keys_file.FILE, host_keys_file.text(self._keys, self._ids))
        hosts: Sequence[sites.SiteHost] = [
            replace(host, location=replace(host.location, ssh_host_keys=self._keys[host.plan.name]))
            if host.plan.name in self._keys
            else host
            for host in self._site.hosts
        ]
        write_atomically(self._site.known_hosts_file, Site(self._site.plan, tuple(hosts)).known_hosts)
