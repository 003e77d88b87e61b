"""Probes many hosts over SSH from one process: 10 ms of CPU time on the controller for each host, and no forks."""

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
from vllm_fleet.facts.states import DriftState, VetoCode
from vllm_fleet.facts.vetoes import Veto
from vllm_fleet.host.manifest import Manifest

PROBE_SECONDS = 120.0


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
    return json.dumps(
        {"facts": dict(manifest.facts), "items": manifest.items, "ports": manifest.ports}, separators=(",", ":")
    )


def remote_command(user: str, manifest: Manifest) -> str:
    """The command that probes a host. Only hosts with GPUs get the module that reads GPU facts."""
    modules = ("docker_engine", "neighbours", *(("gpu_facts",) if "gpu_vendor" in manifest.facts else ()))
    return ssh.python_command(user, ssh.pack_program("probe", *modules))


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
            request = (target, remote_command(target.user, manifest), probe_input(manifest))
            response = ssh.run_json_openssh(*request) if target.command else ssh.run_json(*request, jump_hosts)
            try:
                answer = await asyncio.wait_for(response, PROBE_SECONDS)
                report = parse_report(target.name, manifest, answer)
            except TimeoutError:
                report = Report(target.name, error=f"no answer from {target.address} within {PROBE_SECONDS:.0f} s")
            except NoAnswerError as fault:
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
            try:
                answer = await asyncio.wait_for(
                    ssh.run_json(target, ssh.python_command(target.user, ssh.pack_program("gpu_facts"))), PROBE_SECONDS
                )
            except TimeoutError:
                return f"no answer from {target.address} within {PROBE_SECONDS:.0f} s"
            except NoAnswerError as fault:
                return str(fault)
        facts: Mapping[str, Any] = json.loads(answer)
        return facts

    return await asyncio.gather(*(read_host(target) for target in targets))


def parse_report(host: str, manifest: Manifest, answer: str) -> Report:
    """The probe's answer as a report, with the vetoes and repairs that follow from the facts in it."""
    data: dict[str, Any] = json.loads(answer)
    drift = [
        Drift(host, item["role"], item["kind"], item["what"], DriftState(item["state"]), item["why"])
        for item in data["drift"]
    ]
    facts: Mapping[str, Any] = data.get("facts") or {}
    role = str(manifest.facts.get("driver_role"))
    drift += [
        Drift(host, role, "driver", "driver", fault.code, fault.text)
        for fault in vetoes.find_repairs(manifest.facts, facts)
    ]
    own = [Veto(VetoCode(fault["code"]), fault["why"]) for fault in data["veto"]]
    return Report(host, tuple(drift), (*own, *vetoes.find_vetoes(manifest.facts, facts)), facts=facts)
