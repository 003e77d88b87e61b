"""The traffic of hosts at every gateway: out of it, with an owner and an end, and back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vllm_fleet.facts.rollout_answer import Drained, Looked, Ready, Renewed, Server, question
from vllm_fleet.operate import run_owner
from vllm_fleet.operate.rollout.programs import GATEWAY, Answer, CommandError, Programs

#: Of the requests that are in flight, as much more must find a place on the servers that stay.
MARGIN = 0.25
_PAUSE_SECONDS = 2.0


@dataclass
class Traffic:
    """The gateways of a run, and the name under which it drains.

    Attributes:
        programs: the hosts of the run.
        owner: the name of the run.
        reason: why it drains, for people.
        lease_seconds: after this time without a renewal the gateways end its drains.
        kind: what ends its drains besides: the run itself, any run of ``site.yml``, or a command (``cordon``). Traffic
            that a command gives back ends cordons too.
    """

    programs: Programs
    owner: str
    reason: str
    lease_seconds: float
    kind: str = "run"
    _dead: set[str] = field(default_factory=set)
    _seen: set[str] = field(default_factory=set)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def look(self, gateways: Iterable[str]) -> Mapping[str, Looked]:
        """All servers of each gateway; learns which runs are dead.

        Raises:
            CommandError: a gateway gives no answer.
        """
        names = list(gateways)
        seen = await asyncio.gather(*map(self._look, names))
        drains = [server.drain for each in seen for server in each.servers.values() if server.drain]
        self._dead |= {drain.owner for drain in drains if run_owner.is_gone(drain.owner)}
        self._seen |= set(names)
        return dict(zip(names, seen, strict=True))

    async def _look(self, gateway: str) -> Looked:
        try:
            return await self._call(gateway, "look", Looked, servers=["*"])
        except CommandError as fault:
            if not fault.absent:
                raise
            # It is not set up yet, and sends no requests.
            return Looked(haproxy=False, servers={})

    async def _learn(self, gateways: Sequence[str]) -> None:
        """Looks at gateways for dead runs, once."""
        async with self._turn:
            if not self._seen >= set(gateways):
                await self.look(gateways)

    async def drain(self, gateways: Sequence[str], servers: Sequence[str], wait_seconds: float) -> bool:
        """Sends servers no new request from any gateway, and waits until those in flight have ended.

        Args:
            gateways: every gateway: one without the drain would continue to send requests.
            servers: patterns of the servers.
            wait_seconds: how long the requests may take.

        Returns:
            Whether a server was in traffic before.

        Raises:
            CommandError: a gateway gives no answer, another run drains a server, or the requests have not ended. The
                servers have their traffic back.
        """
        drained = await self.send_no_more(gateways, servers)
        await self.await_end(gateways, servers, wait_seconds)
        return any(each.changed for each in drained)

    async def send_no_more(self, gateways: Sequence[str], servers: Sequence[str]) -> list[Drained]:
        """The first half of :meth:`drain`.

        Returns:
            What each gateway has done, with the requests that are in flight still.
        """
        await self._learn(gateways)
        try:
            return await self._all(gateways, servers, 0)
        except CommandError:
            await self.give_back(gateways, servers)
            raise

    async def await_end(self, gateways: Sequence[str], servers: Sequence[str], wait_seconds: float) -> None:
        """The second half of :meth:`drain`."""
        try:
            waited = await self._all(gateways, servers, wait_seconds)
        except CommandError:
            await self.give_back(gateways, servers)
            raise
        for gateway, each in zip(gateways, waited, strict=True):
            if each.busy:
                await self.give_back(gateways, servers)
                shown = ", ".join(f"{name} has {count}" for name, count in sorted(each.busy.items()))
                raise CommandError(
                    gateway,
                    f"after {wait_seconds:.0f} s requests are in flight still: {shown}; run again when they have "
                    "ended, or raise gateway_traffic_drain_seconds",
                )

    async def _all(self, gateways: Sequence[str], servers: Sequence[str], seconds: float) -> list[Drained]:
        calls = [
            self._call(
                name,
                "drain",
                Drained,
                servers=list(servers),
                reason=self.reason,
                kind=self.kind,
                seconds=self.lease_seconds + seconds,
                wait_seconds=seconds,
            )
            for name in gateways
        ]
        return await _gather(calls)

    async def give_back(self, gateways: Sequence[str], servers: Sequence[str]) -> None:
        """Gives servers their traffic back at every gateway that answers; the others end the drain by themselves."""
        calls = [self._call(name, "ready", Ready, servers=list(servers)) for name in gateways]
        await asyncio.gather(*calls, return_exceptions=True)

    async def ready(
        self, gateways: Sequence[str], servers: Sequence[str], expected: Sequence[str], wait_seconds: float
    ) -> bool:
        """Gives servers their traffic back, and waits until the health checks of all gateways have seen them up.

        Args:
            gateways: every gateway.
            servers: patterns of the servers.
            expected: the servers that must come up, as NAME=ADDRESS:PORT; a gateway that does not have one is not asked
                for it.
            wait_seconds: how long a health check may take.

        Returns:
            Whether a server was out of traffic.

        Raises:
            CommandError: a gateway gives no answer, or does not see a server up.
        """
        await self._learn(gateways)
        calls = [
            self._call(
                name,
                "ready",
                Ready,
                servers=list(servers),
                expected=list(expected),
                wait_seconds=wait_seconds,
                kinds=["site", *({self.kind} - {"run", "site"})],
            )
            for name in gateways
        ]
        done = dict(zip(gateways, await _gather(calls), strict=True))
        for gateway, each in done.items():
            if each.late:
                shown = ", ".join(f"{name} is {status}" for name, status in sorted(each.late.items()))
                raise CommandError(gateway, f"after {wait_seconds:.0f} s {shown}")
        return any(each.changed for each in done.values())

    async def renew(self, gateways: Iterable[str]) -> None:
        """Gives the drains of this run more time. A gateway that does not answer is asked again at the next renewal."""
        calls = [self._call(name, "renew", Renewed, seconds=self.lease_seconds) for name in gateways]
        await asyncio.gather(*calls, return_exceptions=True)

    async def await_room(self, gateways: Sequence[str], servers: Mapping[str, int], wait_seconds: float) -> None:
        """Waits until the servers that stay have room for all requests in flight, with a margin.

        Args:
            gateways: every gateway.
            servers: the names of the servers that leave -> how many requests each works on at the same time; 0:
                unknown.
            wait_seconds: how long to wait.

        Raises:
            CommandError: they have no room, or a gateway gives no answer.
        """
        deadline = asyncio.get_running_loop().time() + wait_seconds
        while True:
            seen = await self.look(gateways)
            lacks = [text for name, each in seen.items() if (text := lack_of_room(name, each, servers))]
            if not lacks:
                return
            if asyncio.get_running_loop().time() >= deadline:
                raise CommandError(gateways[0], f"{'; '.join(lacks)}: nothing was touched")
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _call(self, gateway: str, command: str, record: type[Answer], **values: object) -> Answer:
        asked = question(owner=self.owner, dead=sorted(self._dead) or None, **values)
        return await self.programs.call(gateway, GATEWAY, command, asked, record)


async def _gather(calls: Sequence[Coroutine[None, None, Answer]]) -> list[Answer]:
    """All answers, or the first error after every call has ended: none is left behind."""
    done = await asyncio.gather(*calls, return_exceptions=True)
    if faults := [each for each in done if isinstance(each, BaseException)]:
        raise faults[0]
    return [each for each in done if not isinstance(each, BaseException)]


def lack_of_room(gateway: str, seen: Looked, leaving: Mapping[str, int]) -> str:
    """Why servers may not leave the traffic of a gateway now; empty if they may.

    A backend of which all servers leave has no others in the plan: its model is out of service meanwhile.

    Args:
        gateway: the name of the gateway.
        seen: its servers.
        leaving: the names of those that leave -> the requests that each works on at the same time.
    """
    backends: dict[str, list[Server]] = {}
    for server in seen.servers.values():
        backends.setdefault(server.backend, []).append(server)
    for backend, servers in backends.items():
        others = [server for server in servers if server.name not in leaving]
        # Servers that get no traffic take no room away.
        if not others or not any(_serves(server) for server in servers if server.name in leaving):
            continue
        ready = [server for server in others if _serves(server)]
        in_flight = sum(server.sessions for server in servers)
        seats = max(leaving[server.name] for server in servers if server.name in leaving)
        needed = max(1, math.ceil(in_flight * (1 + MARGIN) / seats)) if seats else 1
        if len(ready) < needed:
            return (
                f"{backend} on {gateway} has {len(ready)} other servers ready, and {in_flight} requests in flight need "
                f"{needed}"
            )
    return ""


def _serves(server: Server) -> bool:
    return server.status.split()[:1] == ["UP"] and not server.drained
