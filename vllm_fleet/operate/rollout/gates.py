"""The gates that a started release must pass on its host before it gets traffic."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import ssh
from vllm_fleet.facts.rollout_answer import Gated, GateResult, LogProbs
from vllm_fleet.operate.rollout.hosts import RolloutHost
from vllm_fleet.operate.rollout.programs import CommandError, Programs
from vllm_fleet.operate.rollout.record import Record
from vllm_fleet.operate.rollout.references import (
    Measured,
    Reference,
    digest_of_prompt,
    find_reference,
    judge_numerics,
    judge_speed,
    write_reference,
)
from vllm_fleet.schema.gates import GATES

#: What the first host of a release passes besides what all pass.
_OF_CANARIES = ("speed", "questions")
#: Gates that are judged before the next ones are asked.
_COMPARED = ("numerics", "speed")


@dataclass
class GateError(Exception):
    """A gate does not let a release pass.

    Attributes:
        gate: its name.
        text: what it has found.
        log: the lines that show it.
    """

    gate: str
    text: str
    log: tuple[str, ...] = ()


@dataclass
class Measurements:
    """What the gates of a host have found.

    Attributes:
        results: a record for each gate and instance, in their order.
        logprobs: digest of a prompt -> the log-probabilities of its tokens.
        speed: what the load has measured.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    logprobs: dict[str, list[float]] = field(default_factory=dict)
    speed: dict[str, Any] | None = None


@dataclass(frozen=True)
class HostGates:
    """Asks a host's instances, and judges what they answer.

    Attributes:
        record: where each result is written down.
    """

    programs: Programs
    record: Record = field(default_factory=Record)

    def check(self, host: RolloutHost) -> None:
        """Reads what earlier releases have measured.

        Raises:
            FleetError: a file of it cannot be read.
        """
        if "reference" in host.gates:
            find_reference(Path(host.gates["reference"]))

    async def measure_before(self, host: RolloutHost, instances: Sequence[str]) -> Mapping[str, Any]:
        """The speed of the release that serves, on a host that is out of traffic.

        Args:
            host: the host.
            instances: those that run still.

        Returns:
            Instance -> figures; without those that could not be measured: a later comparison uses the reference.
        """
        if not host.canary or "speed" not in self._wanted(host):
            return {}
        found: dict[str, Any] = {}
        try:
            for result in await self._ask(host, instances, ["speed"]):
                if result.passed:
                    found[result.instance] = _measured(result).model_dump()
        except (CommandError, GateError):
            # What serves may be broken: that is what the new release mends.
            return {}
        return found

    async def prove(
        self, host: RolloutHost, instances: Sequence[str], before: Mapping[str, Any], into: Measurements
    ) -> None:
        """Runs the gates on instances that have started, in their order.

        Args:
            host: the host.
            instances: their names.
            before: what :meth:`measure_before` has returned.
            into: gets the results.

        Raises:
            GateError: one does not pass.
            CommandError: the host gives no answer.
        """
        waived = host.gates.get("waived") or {}
        blank = {"instance": "", "passed": True, "why": "", "lines": [], "figures": {}, "seconds": 0.0}
        for gate, why in waived.items():
            self._note(host, {**blank, "gate": gate, "waived": why}, into)
        for group in _groups(self._wanted(host)):
            with self.record.phase("gates", host.name, gates=group):
                results = await self._ask(host, instances, group)
            for result in results:
                judged = self._judge(host, result, before, into)
                self._note(host, judged, into)
                if not judged["passed"]:
                    text = f"{judged['why']} (instance {result.instance})"
                    raise GateError(result.gate, text, tuple(result.lines))

    def _note(self, host: RolloutHost, result: dict[str, Any], into: Measurements) -> None:
        into.results.append(result)
        self.record.write("gate", host=host.name, **result)

    def keep(self, host: RolloutHost, logprobs: Mapping[str, list[float]], speed: Mapping[str, Any] | None) -> None:
        """Keeps what an accepted release has measured, for later ones. A host that is no canary measures too little."""
        if not host.canary or not logprobs or not (at := host.gates.get("reference")):
            return
        path = Path(at)
        host_class, engine = path.stem.split("--")[:2]
        measured = Measured.model_validate(speed) if speed else None
        write_reference(
            path,
            Reference(
                host_class=host_class,
                engine=engine,
                host=host.name,
                at=round(time.time()),
                logprobs=dict(logprobs),
                speed=measured,
            ),
        )
        text = path.read_text(encoding="utf-8")
        self.record.tell("kept", host=host.name, folder=path.parent.name, file=path.name, text=text)

    def _wanted(self, host: RolloutHost) -> list[str]:
        """The gates of a host, in their order."""
        waived = host.gates.get("waived") or {}
        # Without any, a role is used alone: what a log says can be judged.
        asked = host.gates.get("asked") or (GATES if host.gates else ("log",))
        return [
            gate for gate in GATES if gate in asked and gate not in waived and (host.canary or gate not in _OF_CANARIES)
        ]

    async def _ask(self, host: RolloutHost, instances: Sequence[str], gates: Sequence[str]) -> Sequence[GateResult]:
        prompts = host.gates.get("prompts", ())
        question = {
            "gates": list(gates),
            "instances": [each for each in host.instances if each["name"] in instances],
            "promises": list(host.promises),
            "prompts": list(prompts if host.canary else prompts[:1]),
            **{key: host.gates[key] for key in ("vocabulary", "questions", "share", "speed") if key in host.gates},
        }
        answer = await self.programs.run_packed(host.name, ssh.pack_program("gates"), question, Gated)
        return answer.results

    def _judge(
        self, host: RolloutHost, result: GateResult, before: Mapping[str, Any], into: Measurements
    ) -> dict[str, Any]:
        """The result of a gate as it is kept; that of a comparison is judged here."""
        kept = {**result.model_dump(), "waived": ""}
        if not result.passed or result.gate not in _COMPARED:
            return kept
        try:
            if result.gate == "numerics":
                figures, why = self._judge_numerics(host, result, into)
            else:
                figures, why = self._judge_speed(host, result, before, into)
        except FleetError as fault:
            figures, why = {}, str(fault)
        return {**kept, "figures": figures, "passed": not why, "why": why}

    @staticmethod
    def _judge_numerics(host: RolloutHost, result: GateResult, into: Measurements) -> tuple[dict[str, Any], str]:
        try:
            found = LogProbs.model_validate(result.figures).logprobs
        except ValidationError:
            return {}, "gave log-probabilities that cannot be read"
        reference, same = _reference_of(host)
        named = dict(zip(map(digest_of_prompt, host.gates["prompts"]), found, strict=False))
        figures, why = {"compared": 0}, ""
        if reference:
            figures, why = judge_numerics(named, reference, host.gates["numerics"]["same" if same else "other"])
        into.logprobs.update(named)
        return figures, why

    @staticmethod
    def _judge_speed(
        host: RolloutHost, result: GateResult, before: Mapping[str, Any], into: Measurements
    ) -> tuple[dict[str, Any], str]:
        new = _measured(result)
        into.speed = new.model_dump()
        known = before.get(result.instance)
        old = Measured.model_validate(known) if known else _recorded_speed(host)
        if old is None:
            return dict(result.figures), ""
        compared, why = judge_speed(new, old, host.gates["speed"])
        return {**into.speed, **compared}, why


def _reference_of(host: RolloutHost) -> tuple[Reference | None, bool]:
    """What a release before has measured, and whether it is of this engine and class, as :func:`find_reference`.

    Raises:
        FleetError: its file is damaged.
    """
    at = host.gates.get("reference")
    return find_reference(Path(at)) if at else (None, False)


def _recorded_speed(host: RolloutHost) -> Measured | None:
    """The speed of the last release of the same class, as it was recorded."""
    reference, _ = _reference_of(host)
    own = Path(host.gates["reference"]).name.partition("--")[0] if "reference" in host.gates else ""
    return reference.speed if reference and reference.host_class == own else None


def _groups(gates: Sequence[str]) -> Iterable[list[str]]:
    """The gates in groups, each ending with one that is judged by a comparison."""
    group: list[str] = []
    for gate in gates:
        group.append(gate)
        if gate in _COMPARED:
            yield group
            group = []
    if group:
        yield group


def _measured(result: GateResult) -> Measured:
    try:
        return Measured.model_validate(result.figures)
    except ValidationError:
        raise GateError(result.gate, "gave figures that cannot be read") from None
