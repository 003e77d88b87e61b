"""New SSH host keys for the hosts of a fleet, over connections that are trusted already; cut off, the next run ends it.

Every host makes its key; both keys are written down and trusted; the host takes the new one; a new connection that
takes nothing else proves it; then the old one is forgotten.
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
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import connection, ssh
from vllm_fleet.edge.connection import JumpHosts, NoAnswerError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.fleet import host_keys_file
from vllm_fleet.fleet.host_keys_file import Shown
from vllm_fleet.inventory import Site

_SECONDS = 60.0
#: sshd closes its sockets and opens them anew when it reads its keys: a connection may be refused meanwhile, or be
#: taken by the process that still shows the old key.
_RELOAD_SECONDS = 15.0
_PAUSE_SECONDS = 0.3


@dataclass
class Outcome:
    """What became of the hosts.

    Attributes:
        rotated: host -> its new key.
        faults: what went wrong, a host each; its old key is still trusted.
    """

    rotated: dict[str, str] = field(default_factory=dict)
    faults: list[FleetError] = field(default_factory=list)


def rotate(site: Site, targets: Mapping[str, Target]) -> Outcome:
    """Gives hosts new keys.

    Args:
        site: the fleet.
        targets: the hosts, as they are reached now.
    """
    return asyncio.run(_Rotation(site).run(targets))


class _Rotation:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._outcome = Outcome()
        found = host_keys_file.load(site.plan.directory)
        self._ids = {host.plan.name: host.location.id for host in site.hosts if host.location.id}
        self._keys = dict(host_keys_file.standing(found, self._ids))

    async def run(self, targets: Mapping[str, Target]) -> Outcome:
        # What an earlier run has begun is brought to its end, and no third key is made.
        fresh = {name: len(self._keys.get(name, ())) < 2 for name in targets}
        made = await self._ask(targets.values(), {name: {"step": "make", "create": fresh[name]} for name in targets})
        for name, shown in made.items():
            self._keys[name] = host_keys_file.both(targets[name].host_keys, shown)
        self._publish()
        trusting = [self._knowing(targets[name], self._keys[name]) for name in made]
        taken = await self._ask(trusting, {name: {"step": "take"} for name in made})
        proving = [self._knowing(targets[name], (shown.current,)) for name, shown in taken.items()]
        looks = {name: {"step": "look"} for name in taken}
        for name, shown in (await self._ask(proving, looks, again_for=_RELOAD_SECONDS)).items():
            self._keys[name] = (shown.current,)
            self._outcome.rotated[name] = shown.current
        self._publish()
        return self._outcome

    def _knowing(self, target: Target, keys: tuple[str, ...]) -> Target:
        """A host that shows one of the keys, through a gateway whose own key may have changed in this run."""
        jump = target.jump and replace(target.jump, host_keys=self._keys.get(target.jump.name, target.jump.host_keys))
        return replace(target, host_keys=keys, jump=jump)

    async def _ask(
        self, targets: Any, questions: Mapping[str, Mapping[str, Any]], again_for: float = 0.0
    ) -> Mapping[str, Shown]:
        """What the hosts answer; those that cannot be reached are asked again for ``again_for`` seconds."""
        gate = asyncio.Semaphore(connection.CONCURRENCY)

        async def answer(target: Target, command: str, text: str) -> str:
            end = time.monotonic() + again_for
            while True:
                try:
                    return await ssh.run_json(target, command, text, jump_hosts)
                except NoAnswerError:
                    if time.monotonic() >= end:
                        raise
                    await asyncio.sleep(_PAUSE_SECONDS)

        async def one(target: Target) -> tuple[str, Shown] | None:
            text, command = (
                json.dumps(questions[target.name]),
                ssh.python_command(target.user, ssh.pack_program("host_key")),
            )
            try:
                async with gate:
                    found = json.loads(await asyncio.wait_for(answer(target, command, text), _SECONDS))
            except (NoAnswerError, TimeoutError) as fault:
                message = str(fault) or f"no answer from {target.address} within {_SECONDS:.0f} s"
                hint = "nothing is lost: both keys are trusted until the next run ends it"
                self._outcome.faults.append(FleetError(message, hint, host=target.name, code="work-failed"))
                return None
            return target.name, Shown(found["current"], found["next"])

        async with JumpHosts() as jump_hosts:
            return dict(filter(None, await asyncio.gather(*(one(target) for target in targets))))

    def _publish(self) -> None:
        """Writes the keys down, for the team and for ``ssh``."""
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
