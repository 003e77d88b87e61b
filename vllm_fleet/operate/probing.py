"""Probes many hosts over SSH from one process: 10 ms of controller CPU a host, against a fork for each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_fleet.edge import ssh
from vllm_fleet.edge.connection import CONCURRENCY, JumpHosts, NoAnswerError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.facts import vetoes
from vllm_fleet.host.manifest import Manifest

PROBE_SECONDS = 120.0


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
        facts: what a host with GPUs says of itself, as :func:`vllm_fleet.on_host.gpu_facts.read_facts` spells it.
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


def probe_input(manifest: Manifest) -> str:
    """What the probe reads: compact JSON, which Python encodes in C; the manifest's own text is for people."""
    return json.dumps({"facts": dict(manifest.facts), "items": manifest.items}, separators=(",", ":"))


def remote_command(user: str, manifest: Manifest) -> str:
    """The command that probes a host; only one with GPUs is sent what asks for them."""
    modules = ("gpu_facts",) if "gpu_vendor" in manifest.facts else ()
    return ssh.python_command(user, ssh.pack_program("probe", *modules))


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
            question = (target, remote_command(target.user, manifest), probe_input(manifest))
            answering = ssh.run_json_openssh(*question) if target.command else ssh.run_json(*question, jump_hosts)
            try:
                answer = await asyncio.wait_for(answering, PROBE_SECONDS)
                report = report_of(target.name, manifest, answer)
            except TimeoutError:
                report = Report(target.name, error=f"no answer from {target.address} within {PROBE_SECONDS:.0f} s")
            except NoAnswerError as fault:
                report = Report(target.name, error=str(fault))
        on_report(report)
        return report

    async with JumpHosts() as jump_hosts:
        reports = await asyncio.gather(*(one(target, manifest) for target, manifest in targets))
    return {report.host: report for report in reports}


def facts(targets: Sequence[Target]) -> list[Mapping[str, Any] | str]:
    """What each host says of itself, as :mod:`vllm_fleet.on_host.gpu_facts` spells it, or why it says nothing."""
    return asyncio.run(_facts_of_all(targets))


async def _facts_of_all(targets: Sequence[Target]) -> list[Mapping[str, Any] | str]:
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(target: Target) -> Mapping[str, Any] | str:
        async with gate:
            try:
                answer = await asyncio.wait_for(
                    ssh.run_json(target, ssh.python_command(target.user, ssh.pack_program("gpu_facts"))), PROBE_SECONDS
                )
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
