"""Probes many hosts over SSH from one process: 10 ms of CPU time on the controller for each host, and no forks."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_fleet.base.foreign_text import Record, UnreadableError, clean_text, parse_record
from vllm_fleet.edge import ssh
from vllm_fleet.edge.connection import CONCURRENCY, JumpHosts, NoAnswerError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.facts import host_answer, vetoes
from vllm_fleet.facts.states import DriftState, VetoCode
from vllm_fleet.facts.vetoes import Veto
from vllm_fleet.host.manifest import Manifest
from vllm_fleet.host.manifest_items import item_name

PROBE_SECONDS = 120.0
_UNREADABLE = "gave an answer that cannot be read"


@dataclass(frozen=True)
class Drift:
    """One item of a manifest that does not match what is on a host.

    Attributes:
        state: how it differs, for programs; that of a driver is the code that would veto the host if no role
            installed the driver.
        why: the same for people.
    """

    host: str
    role: str
    kind: str
    what: str
    state: DriftState | VetoCode
    why: str

    def __str__(self) -> str:
        return f"{self.host}: {self.role}: {self.what} {self.why}"

    def record(self) -> dict[str, str]:
        """The drift as the JSON contract spells it."""
        return {
            "host": self.host,
            "role": self.role,
            "kind": self.kind,
            "what": self.what,
            "state": self.state.value,
            "why": self.why,
        }


@dataclass(frozen=True)
class Report:
    """The result of probing one host.

    Attributes:
        veto: why a run must not touch the host; empty when it may.
        error: why the host gave no answer; empty when it gave one.
        facts: what a host with GPUs reports, as :func:`vllm_fleet.on_host.gpu_facts.read_facts` returns it.
    """

    host: str
    drift: tuple[Drift, ...] = ()
    veto: tuple[Veto, ...] = ()
    error: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def roles(self) -> frozenset[str]:
        """The roles that own the drift."""
        return frozenset(item.role for item in self.drift)


def probe_input(manifest: Manifest) -> str:
    """The standard input of the probe: compact JSON, which Python encodes in C."""
    question = {"facts": dict(manifest.facts), "items": manifest.items, "ports": manifest.ports}
    return json.dumps({**question, "fleet": manifest.fleet}, separators=(",", ":"))


def remote_command(user: str, manifest: Manifest, *, password: bool = False) -> str:
    """The command that probes a host. Only hosts with GPUs get the module that reads GPU facts.

    Args:
        user: the user who logs in.
        manifest: what the host is compared with.
        password: whether sudo may ask for a password.
    """
    has_certificate = any(item["kind"] == "certificate" for item in manifest.items)
    modules = (
        *("docker_engine", "neighbours"),
        *(("gpu_facts",) if "gpu_vendor" in manifest.facts else ()),
        *(("certificate_facts",) if has_certificate else ()),
    )
    return ssh.python_command(user, ssh.pack_program("probe", *modules), password=password)


def probe_hosts(
    targets: Sequence[tuple[Target, Manifest]], on_report: Callable[[Report], None] = lambda _: None
) -> Mapping[str, Report]:
    """Probes every host for the items of its manifest that differ.

    Args:
        targets: hosts with their manifests.
        on_report: called for each report, to show progress.

    Returns:
        Host name -> report, in the order of the targets. A host that does not answer has an error.
    """
    return asyncio.run(_probe_all(targets, on_report))


async def _probe_all(
    targets: Sequence[tuple[Target, Manifest]], on_report: Callable[[Report], None]
) -> Mapping[str, Report]:
    gate = asyncio.Semaphore(CONCURRENCY)

    async def probe_host(target: Target, manifest: Manifest) -> Report:
        async with gate:
            command = remote_command(target.user, manifest, password=target.become_password is not None)
            response = ssh.run_json(target, command, probe_input(manifest), jump_hosts)
            try:
                answer = await asyncio.wait_for(response, PROBE_SECONDS)
                report = parse_report(target.name, manifest, answer)
            except TimeoutError:
                report = Report(target.name, error=f"no answer from {target.address} within {PROBE_SECONDS:.0f} s")
            except (NoAnswerError, UnreadableError) as fault:
                report = Report(target.name, error=str(fault))
        on_report(report)
        return report

    async with JumpHosts() as jump_hosts:
        reports = await asyncio.gather(*(probe_host(target, manifest) for target, manifest in targets))
    return {report.host: report for report in reports}


def read_facts(targets: Sequence[Target]) -> list[Mapping[str, Any] | str]:
    """The facts of each host, as :mod:`vllm_fleet.on_host.gpu_facts` returns them, or why it gave no answer."""
    return asyncio.run(_read_all_facts(targets))


async def _read_all_facts(targets: Sequence[Target]) -> list[Mapping[str, Any] | str]:
    gate = asyncio.Semaphore(CONCURRENCY)

    async def read_host(target: Target) -> Mapping[str, Any] | str:
        async with gate:
            password = target.become_password is not None
            command = ssh.python_command(target.user, ssh.pack_program("gpu_facts"), password=password)
            try:
                answer = await asyncio.wait_for(ssh.run_json(target, command, jump_hosts=jump_hosts), PROBE_SECONDS)
                return parse_facts(answer)
            except TimeoutError:
                return f"no answer from {target.address} within {PROBE_SECONDS:.0f} s"
            except (NoAnswerError, UnreadableError) as fault:
                return str(fault)

    async with JumpHosts() as jump_hosts:
        return await asyncio.gather(*(read_host(target) for target in targets))


def parse_facts(answer: str) -> Mapping[str, Any]:
    """The facts of a host, without control characters.

    Args:
        answer: what ``gpu_facts`` has printed on the host.

    Raises:
        UnreadableError: it is not what that program prints.
    """
    return _read(host_answer.HostFacts, answer).model_dump(mode="json")


def parse_report(host: str, manifest: Manifest, answer: str) -> Report:
    """The probe's answer as a report, with the vetoes and repairs that follow from the facts in it.

    Args:
        host: the host's name.
        manifest: what it was asked about. The answer cannot bring items, roles or facts of its own.
        answer: what the probe has printed on the host.

    Raises:
        UnreadableError: it is not what the probe prints for this manifest.
    """
    data = _read(host_answer.ProbeAnswer, answer)
    drift = list(_drift_of_manifest(host, manifest, data.drift))
    if (data.facts is not None) != ("gpu_vendor" in manifest.facts):
        raise UnreadableError(f"{_UNREADABLE}: facts: {'not asked for' if data.facts else 'is missing'}")
    facts: Mapping[str, Any] = data.facts.model_dump(mode="json") if data.facts else {}
    role = str(manifest.facts.get("driver_role"))
    drift += [
        Drift(host, role, "driver", "driver", fault.code, fault.text)
        for fault in vetoes.find_repairs(manifest.facts, facts)
    ]
    own = [Veto(veto.code, veto.why) for veto in data.veto]
    return Report(host, tuple(drift), (*own, *vetoes.find_vetoes(manifest.facts, facts)), facts=facts)


def _read(record: type[Record], answer: str) -> Record:
    try:
        return parse_record(record, answer)
    except UnreadableError as error:
        raise UnreadableError(f"{_UNREADABLE}: {error}") from None


def _drift_of_manifest(host: str, manifest: Manifest, listed: Sequence[host_answer.DriftItem]) -> Iterator[Drift]:
    """The drift, of which every item is one of the manifest and is listed once."""
    left: Counter[tuple[str, str, str]] = Counter(
        (item["role"], item["kind"], item_name(item)) for item in manifest.items
    )
    for number, item in enumerate(listed):
        place = (item.role, item.kind, item.what)
        if not left[place]:
            shown = clean_text(" ".join(place))
            raise UnreadableError(f"{_UNREADABLE}: drift.{number}: {shown!r} is no item of the manifest")
        left[place] -= 1
        yield Drift(host, *place, item.state, item.why)
