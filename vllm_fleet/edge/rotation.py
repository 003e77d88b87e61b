"""New SSH host keys for the hosts of a fleet, over connections that are trusted already; cut off, the next run ends it.

Every host makes its key; both keys are written down and trusted; the host takes the new one; a new connection that
takes nothing else proves it; then the old one is forgotten.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_fleet import hostkeys
from vllm_fleet import site as sites
from vllm_fleet.edge import ssh
from vllm_fleet.edge.connection import NoAnswerError, Ways
from vllm_fleet.edge.ssh import Target
from vllm_fleet.errors import FleetError
from vllm_fleet.files import write_atomically
from vllm_fleet.hostkeys import Shown
from vllm_fleet.site import Site

_SECONDS = 60.0


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
        found = hostkeys.load(site.plan.directory)
        self._ids = {host.plan.name: host.location.id for host in site.hosts if host.location.id}
        self._keys = dict(hostkeys.standing(found, self._ids))

    async def run(self, targets: Mapping[str, Target]) -> Outcome:
        # What an earlier run has begun is brought to its end, and no third key is made.
        fresh = {name: len(self._keys.get(name, ())) < 2 for name in targets}
        made = await self._ask(targets.values(), {name: {"step": "make", "create": fresh[name]} for name in targets})
        for name, shown in made.items():
            self._keys[name] = hostkeys.both(targets[name].host_keys, shown)
        self._publish()
        trusting = [replace(targets[name], host_keys=self._keys[name]) for name in made]
        taken = await self._ask(trusting, {name: {"step": "take"} for name in made})
        proving = [replace(targets[name], host_keys=(shown.current,)) for name, shown in taken.items()]
        for name, shown in (await self._ask(proving, {name: {"step": "look"} for name in taken})).items():
            self._keys[name] = (shown.current,)
            self._outcome.rotated[name] = shown.current
        self._publish()
        return self._outcome

    async def _ask(self, targets: Any, questions: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Shown]:
        gate = asyncio.Semaphore(ssh.CONCURRENCY)

        async def one(target: Target) -> tuple[str, Shown] | None:
            text, command = json.dumps(questions[target.name]), ssh.python(target.user, ssh.program("host_key"))
            try:
                async with gate:
                    answer = json.loads(await asyncio.wait_for(ssh.ask(target, command, text, ways), _SECONDS))
            except (NoAnswerError, TimeoutError) as fault:
                message = str(fault) or f"no answer from {target.address} within {_SECONDS:.0f} s"
                hint = "nothing is lost: both keys are trusted until the next run ends it"
                self._outcome.faults.append(FleetError(message, hint, host=target.name, code="work-failed"))
                return None
            return target.name, Shown(answer["current"], answer["next"])

        async with Ways() as ways:
            return dict(filter(None, await asyncio.gather(*(one(target) for target in targets))))

    def _publish(self) -> None:
        """Writes the keys down, for the team and for ``ssh``."""
        directory = self._site.plan.directory
        if self._keys:
            write_atomically(directory / hostkeys.FILE, hostkeys.text(self._keys, self._ids))
        hosts: Sequence[sites.SiteHost] = [
            replace(host, location=replace(host.location, ssh_host_keys=self._keys[host.plan.name]))
            if host.plan.name in self._keys
            else host
            for host in self._site.hosts
        ]
        write_atomically(self._site.known_hosts_file, Site(self._site.plan, tuple(hosts)).known_hosts)
