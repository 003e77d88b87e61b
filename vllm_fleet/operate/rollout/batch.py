"""One batch of a rollout: drain, stop, start, prove, give the traffic back; and back to the last good release.

A host that fails goes back and serves, and the others of its batch go on to their end. Nothing here raises for one
host: what has become of each is its :class:`Progress`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_fleet.facts.rollout_answer import Accepted, Begun, Looked, Renewed, Started, Stopped, WentBack, question
from vllm_fleet.operate import run_owner
from vllm_fleet.operate.rollout.gates import GateError, HostGates, Measurements
from vllm_fleet.operate.rollout.hosts import Progress, RolloutHost
from vllm_fleet.operate.rollout.programs import GATEWAY, RELEASE, Answer, CommandError, Programs
from vllm_fleet.operate.rollout.record import Record, mask_secrets
from vllm_fleet.operate.rollout.start_caches import StartCache, StartCaches
from vllm_fleet.operate.rollout.traffic import Traffic

#: A host whose trial is not renewed goes back after this time; the gateways wait longer than the host.
TRIAL_SECONDS, DRAIN_SECONDS = 600.0, 1200.0
_RENEWAL_SECONDS = 60.0
#: How long a host stays out of traffic that does not pass the gates with its own release; any run ends it before.
_HELD_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Limits:
    """How long things may take, in seconds.

    Attributes:
        drain: the requests in flight, to end.
        ready: a health check, to see a server up.
        room: the other servers, to have room for all requests.
    """

    drain: float = 900.0
    ready: float = 60.0
    room: float = 600.0


@dataclass
class Batch:
    """The hosts that change together.

    Attributes:
        owner: the name of the run.
        record: where each step is written down.
        gates: what instances must pass that have started.
        caches: host name -> what it has started with, where its instances were stopped together.
    """

    hosts: Sequence[RolloutHost]
    programs: Programs
    owner: str
    limits: Limits = field(default_factory=Limits)
    record: Record = field(default_factory=Record)
    gates: HostGates = field(init=False)
    caches: dict[str, StartCache] = field(default_factory=dict)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.gates = HostGates(self.programs, self.record)
        self._start_caches = StartCaches(self.programs)
        self._traffic = Traffic(self.programs, self.owner, "a rollout", DRAIN_SECONDS)
        self._gateways = tuple(dict.fromkeys(name for host in self.hosts for name in host.gateways))

    async def count(self, *, batch_ends: bool) -> None:
        """Writes down what the gateways have counted of requests that went wrong.

        Args:
            batch_ends: whether this is after the batch.
        """
        programs = replace(self.programs, patience_seconds=0.0)

        async def one(gateway: str) -> None:
            try:
                seen = await programs.call(gateway, GATEWAY, "look", question(owner=self.owner, servers=[]), Looked)
            except CommandError:
                return  # the report says that it was not counted, and a step that needs the gateway says why
            self.record.write("counted", gateway=gateway, batch_ends=batch_ends, backends=seen.counters)

        await asyncio.gather(*map(one, self._gateways))

    async def look(self) -> Mapping[str, Progress]:
        """What :meth:`stop` would change; it changes nothing."""

        async def one(host: RolloutHost) -> Progress:
            try:
                begun = await self._begin(host, check=True)
            except CommandError as fault:
                if not fault.absent:
                    raise
                # A host that serves nothing yet, in a run that installs nothing.
                return Progress("rolling", changed=True)
            return Progress("rolling" if begun.on_trial else "same", changed=begun.on_trial)

        return await self._each(one)

    async def stop(self) -> Mapping[str, Progress]:
        """Puts the release on trial, takes hosts out of traffic, and stops what must restart.

        A host with several instances of which others can carry on is left as it is: in :meth:`start` they follow one
        after the other.

        Raises:
            FleetError: what earlier releases have measured cannot be read; nothing is touched.
        """
        for host in self.hosts:
            self.gates.check(host)
        begun: dict[str, Begun] = {}

        async def begin(host: RolloutHost) -> Progress:
            try:
                with self.record.phase("begin", host.name):
                    begun[host.name] = found = await self._begin(host)
            except CommandError as fault:
                return Progress("untouched", fault.text)
            return Progress("rolling" if found.on_trial else "same", changed=found.on_trial or found.wrote)

        done = dict(await self._each(begin))
        whole = [host for host in self.hosts if (found := begun.get(host.name)) and _stops_as_one(host, found)]
        leaving = {host.server(name): host.seats for host in whole for name in host.servers}
        try:
            if leaving and self._gateways:
                with self.record.phase("room", *(host.name for host in whole)):
                    await self._traffic.await_room(self._gateways, leaving, self.limits.room)
        except CommandError as fault:
            return done | {host.name: await self._give_up(host, str(fault)) for host in whole}

        drained = await self._drain_together(whole)

        async def stop(host: RolloutHost) -> Progress:
            try:
                if not drained[host.name].get():
                    with self.record.phase("drain", host.name):
                        await self._traffic.drain(host.gateways, [f"{host.name}_*"], self.limits.drain)
            except CommandError as fault:
                return await self._give_up(host, str(fault))
            with self.record.phase("measure", host.name):
                before = await self.gates.measure_before(host, _running(host, begun[host.name]))
            with self.record.phase("stop", host.name):
                asked = {"instances": begun[host.name].stale, "cache": host.cache or None}
                stopped = await self._call(host, "stop", Stopped, **asked)
            return Progress("stopped", changed=True, before=dict(before), cached=stopped.cached)

        return done | await self._each(stop, whole)

    async def start(self, before: Mapping[str, Progress]) -> Mapping[str, Progress]:
        """Starts and proves what is on trial. A host that fails serves its last good release afterwards.

        Args:
            before: what :meth:`stop` has returned.
        """

        async def one(host: RolloutHost) -> Progress:
            progress = before[host.name]
            names = [str(each["name"]) for each in host.instances]
            if progress.state == "same" and host.prove:
                return await self._prove_again(host, names, progress)
            if progress.state not in ("stopped", "rolling"):
                return progress
            async with self._renewed(host):
                try:
                    if progress.state == "stopped":
                        await self._start_with_cache(host, names, progress)
                    else:
                        await self._roll(host, names, progress)
                except (CommandError, GateError) as fault:
                    await self._go_back(host, progress, fault)
                    if found := self.caches.get(host.name):
                        await self._start_caches.discard(host, found)
            return progress

        return await self._each(one)

    async def finish(self, before: Mapping[str, Progress]) -> Mapping[str, Progress]:
        """Accepts what was proven and gives the traffic back.

        Args:
            before: what :meth:`start` has returned.
        """

        async def accept(host: RolloutHost) -> Progress:
            progress = before[host.name]
            if progress.state in ("started", "rolling"):
                with self.record.phase("accept", host.name):
                    await self._call(host, "accept", Accepted, kept=host.kept)
                self.gates.keep(host, progress.logprobs, progress.speed)
            return progress

        done = await self._each(accept)
        good = [host for host in self.hosts if done[host.name].state in ("started", "rolling", "same")]
        given_back = await self._ready_together(good)

        async def ready(host: RolloutHost) -> Progress:
            progress, changed = done[host.name], given_back[host.name].get()
            progress.changed |= await self._ready(host) if changed is None else changed
            progress.state = "serving"
            return progress

        return done | await self._each(ready, good)

    async def _drain_together(self, hosts: Sequence[RolloutHost]) -> Mapping[str, _OfAll]:
        """Takes hosts out of traffic with one call for each gateway: a call for each host keeps a gateway busy.

        Returns:
            Host name -> whether it has no request in flight. The others wait for theirs.
        """

        async def drain(gateways: Sequence[str], group: Sequence[RolloutHost]) -> Mapping[str, bool]:
            names = [host.name for host in group]
            with self.record.phase("drain", *names):
                found = await self._traffic.send_no_more(gateways, [f"{name}_*" for name in names])
            busy = {key.rpartition("/")[2].rpartition("_")[0] for each in found for key in each.busy}
            return {name: name not in busy for name in names}

        return await _for_all(hosts, drain)

    async def _ready_together(self, hosts: Sequence[RolloutHost]) -> Mapping[str, _OfAll]:
        """Gives hosts their traffic back with one call for each gateway.

        Returns:
            Host name -> whether one of them was out of traffic.
        """

        async def ready(gateways: Sequence[str], group: Sequence[RolloutHost]) -> Mapping[str, bool]:
            names = [host.name for host in group]
            expected = [place for host in group for place in host.servers.values()]
            servers = [f"{name}_*" for name in names]
            with self.record.phase("ready", *names):
                changed = await self._traffic.ready(gateways, servers, expected, self.limits.ready)
            return dict.fromkeys(names, changed)

        return await _for_all(hosts, ready)

    async def _start_with_cache(self, host: RolloutHost, names: Sequence[str], progress: Progress) -> None:
        """No process of the account runs when the cache is copied, and no request has come when it is kept."""
        shares = bool(host.cache and host.cache_store)
        if not shares or progress.cached:
            self.caches[host.name] = StartCache()
        else:
            with self.record.phase("restore", host.name):
                self.caches[host.name] = await self._start_caches.restore(host)
        await self._start_as_one(host, names, progress)
        progress.state = "started"
        if shares:
            with self.record.phase("keep", host.name):
                await self._start_caches.keep(host, self.caches[host.name], max(progress.seconds.values()))

    async def _start_as_one(self, host: RolloutHost, names: Sequence[str], progress: Progress) -> None:
        # What the first one compiles, the others find.
        await self._start(host, names[0], progress)
        await asyncio.gather(*(self._start(host, name, progress) for name in names[1:]))
        await self._prove(host, names, progress)

    async def _prove(self, host: RolloutHost, names: Sequence[str], progress: Progress) -> None:
        found = Measurements()
        try:
            await self.gates.prove(host, names, progress.before, found)
        finally:
            progress.results += found.results
            progress.logprobs |= found.logprobs
            progress.speed = found.speed or progress.speed

    async def _prove_again(self, host: RolloutHost, names: Sequence[str], progress: Progress) -> Progress:
        """Proves a release that stays, on a host of which something below it was changed.

        There is no release to go back to. The host is held out of traffic, until a run finds it good.
        """
        try:
            await self._prove(host, names, progress)
        except (CommandError, GateError) as fault:
            gate = fault.gate if isinstance(fault, GateError) else ""
            progress.state, progress.why, progress.gate, progress.log = "failed", fault.text, gate, list(fault.log)
            held = Traffic(self.programs, self.owner, f"gate {gate}: {fault.text}", _HELD_SECONDS, "site")
            await held.send_no_more(host.gateways, [f"{host.name}_*"])
        return progress

    async def _roll(self, host: RolloutHost, names: Sequence[str], progress: Progress) -> None:
        """Instance by instance; each has its traffic back before the next one leaves."""
        stale = (await self._begin(host)).stale
        for name in names:
            if name not in stale:
                await self._prove(host, [name], progress)
                continue
            server = host.server(name)
            with self.record.phase("room", host.name, instance=name):
                async with self._turn:
                    await self._traffic.await_room(host.gateways, {server: host.seats}, self.limits.room)
                    await self._traffic.send_no_more(host.gateways, [server])
            with self.record.phase("drain", host.name, instance=name):
                await self._traffic.await_end(host.gateways, [server], self.limits.drain)
            with self.record.phase("measure", host.name, instance=name):
                progress.before |= await self.gates.measure_before(host, [name])
            await self._start(host, name, progress)
            await self._prove(host, [name], progress)
            expected = [host.servers[name]] if name in host.servers else []
            with self.record.phase("ready", host.name, instance=name):
                await self._traffic.ready(host.gateways, [server], expected, self.limits.ready)

    async def _start(self, host: RolloutHost, instance: str, progress: Progress) -> None:
        with self.record.phase("start", host.name, instance=instance):
            started = await self._call(host, "start", Started, instance=instance)
        progress.seconds[instance] = started.seconds
        values = {"instance": instance, "seconds": started.seconds, "steps": started.steps}
        self.record.write("started", host=host.name, **values)

    async def _go_back(self, host: RolloutHost, progress: Progress, fault: CommandError | GateError) -> None:
        gate = fault.gate if isinstance(fault, GateError) else ""
        progress.why, progress.gate, progress.log = fault.text, gate, list(fault.log)
        try:
            # Those that roll may have an instance in traffic with the release that is left now.
            with self.record.phase("back", host.name):
                await self._traffic.drain(host.gateways, [f"{host.name}_*"], self.limits.drain)
                back = await self._call(host, "back", WentBack, why=fault.text, gate=gate)
            progress.state = "returned" if back.to else "failed"
            await self._ready(host, wait=back.to is not None)
        except CommandError as second:
            progress.state = "failed"
            progress.why += f"; and it did not go back: {second}"

    async def _give_up(self, host: RolloutHost, why: str) -> Progress:
        """Ends a trial of which nothing has begun: the instances go on with what they serve."""
        with suppress(CommandError):
            await self._call(host, "back", WentBack, why=why, gate="")
        return Progress("untouched", why)

    async def _ready(self, host: RolloutHost, *, wait: bool = True) -> bool:
        expected = list(host.servers.values()) if wait else []
        with self.record.phase("ready", host.name):
            return await self._traffic.ready(host.gateways, [f"{host.name}_*"], expected, self.limits.ready)

    async def _begin(self, host: RolloutHost, *, check: bool = False) -> Begun:
        asked: dict[str, Any] = {"digest": host.release, "seconds": TRIAL_SECONDS, "check": check or None}
        if host.files:
            asked |= {"files": dict(host.files), "instances": list(host.instances)}
        try:
            found = await self._call(host, "begin", Begun, **asked)
        except CommandError as fault:
            if not run_owner.is_gone(fault.owner):
                raise
            # That run left its trial behind: this one takes it over.
            found = await self._call(host, "begin", Begun, **asked, dead=[fault.owner])
        if found.on_trial:
            lines = mask_secrets(found.changes)
            self.record.write("release", host=host.name, old=found.accepted or "", new=host.release, lines=lines)
        return found

    async def _call(self, host: RolloutHost, command: str, kind: type[Answer], **values: object) -> Answer:
        return await self.programs.call(host.name, RELEASE, command, question(owner=self.owner, **values), kind)

    async def _each(
        self, work: Callable[[RolloutHost], Awaitable[Progress]], hosts: Sequence[RolloutHost] | None = None
    ) -> dict[str, Progress]:
        """The work for all hosts side by side; a host whose programs fail has that as its progress."""

        async def one(host: RolloutHost) -> Progress:
            try:
                return await work(host)
            except CommandError as fault:
                return Progress("failed", str(fault), log=list(fault.log))

        chosen = self.hosts if hosts is None else hosts
        return dict(zip((host.name for host in chosen), await asyncio.gather(*map(one, chosen)), strict=True))

    @asynccontextmanager
    async def _renewed(self, host: RolloutHost) -> AsyncIterator[None]:
        """Renews the trial of a host and the drains of this run; the gateways first, since they wait longer."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(_RENEWAL_SECONDS)
                await self._traffic.renew(host.gateways)
                with suppress(CommandError):
                    await self._call(host, "renew", Renewed, seconds=TRIAL_SECONDS)

        task = asyncio.ensure_future(renew())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@dataclass(frozen=True)
class _OfAll:
    """What a call for many hosts has given for one of them.

    Attributes:
        value: its result; None: it must try alone, since another host was in the way.
        fault: a gateway that gave no answer, which would give none to it alone.
    """

    value: bool | None = None
    fault: CommandError | None = None

    def get(self) -> bool | None:
        """The value.

        Raises:
            CommandError: a gateway gave no answer.
        """
        if self.fault:
            raise self.fault
        return self.value


async def _for_all(
    hosts: Sequence[RolloutHost],
    work: Callable[[Sequence[str], Sequence[RolloutHost]], Awaitable[Mapping[str, bool]]],
) -> Mapping[str, _OfAll]:
    """The work for hosts that share their gateways, side by side for each group of gateways."""
    groups: dict[tuple[str, ...], list[RolloutHost]] = {}
    for host in hosts:
        groups.setdefault(host.gateways, []).append(host)

    async def one(gateways: tuple[str, ...], group: Sequence[RolloutHost]) -> dict[str, _OfAll]:
        try:
            return {name: _OfAll(value) for name, value in (await work(gateways, group)).items()}
        except CommandError as fault:
            return dict.fromkeys((host.name for host in group), _OfAll(fault=fault if fault.silent else None))

    found = await asyncio.gather(*(one(gateways, group) for gateways, group in groups.items()))
    return {name: each for part in found for name, each in part.items()}


def _running(host: RolloutHost, found: Begun) -> list[str]:
    """The instances of a host that serve still."""
    return [str(each["name"]) for each in host.instances if each["unit"] in found.running]


def _stops_as_one(host: RolloutHost, found: Begun) -> bool:
    """Whether all instances of a host stop together: others of the host cannot carry on."""
    if not found.on_trial:
        return False
    planned = {str(each["unit"]) for each in host.instances}
    return len(planned) == 1 or bool(found.surplus) or not planned & set(found.running)
