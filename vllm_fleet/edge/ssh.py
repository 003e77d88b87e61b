"""Probes many hosts over SSH from one process: 10 ms of controller CPU a host, against a fork for each."""

from __future__ import annotations

import asyncio
import base64
import json
import shlex
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vllm_fleet import vetoes
from vllm_fleet.edge.connection import CONNECT_SECONDS, NoAnswerError, Ways, connected
from vllm_fleet.manifest import Manifest

#: Hosts that are asked at the same time.
CONCURRENCY = 64
PROBE_SECONDS = 120.0


@dataclass(frozen=True)
class Target:
    """How one host is reached.

    Attributes:
        host_keys: the lines of its public keys, without the host's name; nothing else is taken.
        key_file: the private key; None leaves it to the agent and the user's own SSH configuration.
        command: arguments of ``ssh`` itself, for hosts that need what asyncssh cannot do (ProxyCommand,
            GSSAPI, hardware keys); None for all others.
        jump: the gateway that it is reached through; None: straight.
    """

    name: str
    address: str
    port: int
    user: str
    host_keys: tuple[str, ...]
    key_file: Path | None = None
    command: Sequence[str] | None = None
    jump: Target | None = None


@dataclass(frozen=True)
class Drift:
    """One item of a manifest that is not true on a host."""

    host: str
    role: str
    kind: str
    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.host}: {self.role}: {self.what} {self.why}"

    def record(self) -> dict[str, str]:
        """The drift as the JSON contract spells it."""
        return {"host": self.host, "role": self.role, "kind": self.kind, "what": self.what, "why": self.why}


@dataclass(frozen=True)
class Report:
    """What the probe of one host found.

    Attributes:
        veto: why the host must not be touched; empty when it may be.
        error: why there was no answer; empty when there was one.
        facts: what a host with GPUs says of itself, as :func:`vllm_fleet.gpu_facts.read_facts` spells it.
    """

    host: str
    drift: tuple[Drift, ...] = ()
    veto: tuple[str, ...] = ()
    error: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def roles(self) -> frozenset[str]:
        """The roles that own the drift."""
        return frozenset(item.role for item in self.drift)


@cache
def program(name: str, *modules: str) -> str:
    """A module of this package as one shell word: compressed source that Python unpacks and runs.

    Args:
        name: the module that runs, as ``__main__``.
        modules: others that it may import from ``vllm_fleet``.
    """
    code = "import base64,sys,types,zlib;u=lambda t:zlib.decompress(base64.b64decode(t))"
    for module in modules:
        code += (
            f";m=types.ModuleType('{module}');exec(u('{_packed(module)}'),m.__dict__)"
            f";p=sys.modules.setdefault('vllm_fleet',types.ModuleType('vllm_fleet'));p.{module}=m"
        )
    return shlex.quote(f"{code};exec(u('{_packed(name)}'))")


def _packed(module: str) -> str:
    source = (Path(__file__).parent.parent / f"{module}.py").read_bytes()
    return base64.b64encode(zlib.compress(source, 9)).decode()


def question(manifest: Manifest) -> str:
    """What the probe reads: compact JSON, which Python encodes in C; the manifest's own text is for people."""
    return json.dumps({"facts": dict(manifest.facts), "items": manifest.items}, separators=(",", ":"))


def python(user: str, source: str) -> str:
    """The command that runs a :func:`program` on a host, as root."""
    sudo = "" if user == "root" else "sudo -n "
    return f"{sudo}/usr/bin/python3 -IS -c {source}"


def remote_command(user: str, manifest: Manifest) -> str:
    """The command that probes a host; only one with GPUs is sent what asks for them."""
    modules = ("gpu_facts",) if "gpu_vendor" in manifest.facts else ()
    return python(user, program("probe", *modules))


def probe(
    targets: Sequence[tuple[Target, Manifest]], on_report: Callable[[Report], None] = lambda _: None
) -> Mapping[str, Report]:
    """Asks every host for the part of its manifest that is not true.

    Args:
        targets: hosts with their manifests.
        on_report: called as each host answers, for progress.

    Returns:
        A report for each host, in the order of the targets; a host that does not answer has an error.
    """
    return asyncio.run(_probe_all(targets, on_report))


async def _probe_all(
    targets: Sequence[tuple[Target, Manifest]], on_report: Callable[[Report], None]
) -> Mapping[str, Report]:
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(target: Target, manifest: Manifest) -> Report:
        async with gate:
            asked = _ask_openssh(target, manifest) if target.command else _ask_asyncssh(target, manifest, ways)
            try:
                answer = await asyncio.wait_for(asked, PROBE_SECONDS)
                report = report_of(target.name, manifest, answer)
            except TimeoutError:
                report = Report(target.name, error=f"no answer from {target.address} within {PROBE_SECONDS:.0f} s")
            except NoAnswerError as fault:
                report = Report(target.name, error=str(fault))
        on_report(report)
        return report

    async with Ways() as ways:
        reports = await asyncio.gather(*(one(target, manifest) for target, manifest in targets))
    return {report.host: report for report in reports}


def facts(targets: Sequence[Target]) -> list[Mapping[str, Any] | str]:
    """What each host says of itself, as :func:`vllm_fleet.gpu_facts.read_facts` spells it, or why it says nothing."""
    return asyncio.run(_facts_of_all(targets))


async def _facts_of_all(targets: Sequence[Target]) -> list[Mapping[str, Any] | str]:
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(target: Target) -> Mapping[str, Any] | str:
        async with gate:
            try:
                answer = await asyncio.wait_for(ask(target, python(target.user, program("gpu_facts"))), PROBE_SECONDS)
            except TimeoutError:
                return f"no answer from {target.address} within {PROBE_SECONDS:.0f} s"
            except NoAnswerError as fault:
                return str(fault)
        found: Mapping[str, Any] = json.loads(answer)
        return found

    return await asyncio.gather(*(one(target) for target in targets))


def report_of(host: str, manifest: Manifest, answer: str) -> Report:
    """The probe's answer as a report, with what the facts in it veto."""
    data: dict[str, Any] = json.loads(answer)
    drift = tuple(Drift(host, d["role"], d["kind"], d["what"], d["why"]) for d in data["drift"])
    facts: Mapping[str, Any] = data.get("facts") or {}
    role = str(manifest.facts.get("driver_role"))
    drift += tuple(Drift(host, role, "driver", "driver", why) for why in vetoes.repairs(manifest.facts, facts))
    return Report(host, drift, (*data["veto"], *vetoes.vetoes(manifest.facts, facts)), facts=facts)


def _answer(target: Target, exit_status: int | None, out: str, err: str) -> str:
    if exit_status == 0 and out.startswith("{"):
        return out
    last = err.strip().splitlines()[-1] if err.strip() else f"exit status {exit_status}"
    raise NoAnswerError(f"the probe failed on {target.address}: {last}")


async def _ask_asyncssh(target: Target, manifest: Manifest, ways: Ways) -> str:
    return await ask(target, remote_command(target.user, manifest), question(manifest), ways)


async def ask(target: Target, command: str, text: str = "", ways: Ways | None = None) -> str:
    """Runs a command that prints one JSON object on a host that shows just the key that it should.

    Args:
        target: the host.
        command: the command, as its shell reads it.
        text: what the command reads from its standard input.
        ways: the gateways that other hosts of this run come through too.

    Returns:
        The JSON.

    Raises:
        NoAnswerError: the host cannot be reached, shows another key, refuses the user, or the command failed.
    """
    async with AsyncExitStack() as stack:
        through = ways if ways else await stack.enter_async_context(Ways())
        connection = await stack.enter_async_context(connected(target, through))
        done = await connection.run(command, input=text)
    return _answer(target, done.exit_status, str(done.stdout), str(done.stderr))


async def _ask_openssh(target: Target, manifest: Manifest) -> str:
    words = [
        "ssh",
        *(target.command or ()),
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=yes",
        "-o",
        f"ConnectTimeout={CONNECT_SECONDS:.0f}",
        "-p",
        str(target.port),
        *(("-i", str(target.key_file)) if target.key_file else ()),
        f"{target.user}@{target.address}",
        remote_command(target.user, manifest),
    ]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, stderr=pipe)
    out, err = await process.communicate(question(manifest).encode())
    return _answer(target, process.returncode, out.decode(), err.decode())
