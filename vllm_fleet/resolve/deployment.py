"""What one host of a class runs, and the variant for a host with other facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm_fleet.base.merge import leaves, merge
from vllm_fleet.resolve.memory_fit import Fit
from vllm_fleet.resolve.provenance import Origin
from vllm_fleet.schema.recipe import Engine, FactCondition, Install, Profile


@dataclass(frozen=True)
class Alternative:
    """What a deployment becomes on a host whose facts say that a rule's condition does not hold.

    Attributes:
        fact: the condition.
        keys: what the rule sets, with ``args.`` or ``env.`` before it.
        args: a layer for the top of the arguments; None takes a key away.
        env: the same for the environment.
        provenance: the origin of each value that the layer brings back.
        origin: the rule.
    """

    fact: FactCondition
    keys: tuple[str, ...]
    args: Mapping[str, Any]
    env: Mapping[str, Any]
    provenance: Mapping[str, Origin]
    origin: Origin

    @property
    def _names(self) -> str:
        return ", ".join(key.partition(".")[2] for key in self.keys)

    @property
    def _condition(self) -> str:
        return f"the MEC firmware is below {self.fact.mec_firmware_below}"

    @property
    def note(self) -> str:
        """The note before a host is probed."""
        return f"{self._names}: set where {self._condition}, or where that is unknown"

    @property
    def left_out(self) -> str:
        """The note for a host where the condition does not hold."""
        return f"{self._names}: left out, because the host does not match: {self._condition}"

    def record(self) -> dict[str, Any]:
        """The alternative as the JSON contract spells it."""
        return {
            "unless": self.fact.model_dump(),
            "args": dict(self.args),
            "env": dict(self.env),
            "provenance": {"file": self.origin.file, "rule": self.origin.rule, "why": self.origin.why},
        }


@dataclass(frozen=True)
class Deployment:
    """What one host of a class runs: instances, arguments, environment, and why."""

    host_class: str
    model: str
    engine: Engine
    engine_directory_id: str
    profile: Profile
    install: Install
    instances: int
    tensor_parallel_size: int
    args: Mapping[str, Any]
    env: Mapping[str, str]
    fit: Fit
    status: str
    evidence: str
    notes: tuple[str, ...]
    #: Whether the release takes a mapping in a config file only as JSON text.
    mappings_as_text: bool
    provenance: Mapping[str, Origin]
    #: What the facts of a host still choose between; ``args`` and ``env`` hold the safe side.
    alternatives: tuple[Alternative, ...] = ()

    @property
    def packages(self) -> tuple[str, ...]:
        """Packages of the distribution that a wheel needs beside it: Triton and Inductor compile against Python."""
        # Triton compiles on every GPU. Eager mode is not enough on a processor: the sampler compiles at a request.
        compiles = self.engine.accelerator != "cpu" or self.env.get("TORCHDYNAMO_DISABLE") != "1"
        if self.engine.wheel is None or self.install != "wheel" or not compiles:
            return ()
        return ("g++", "python3-dev")

    def record(self) -> dict[str, Any]:
        """The deployment as the JSON contract spells it."""
        return {
            "host_class": self.host_class,
            "model": self.model,
            "engine": self.engine.id,
            "profile": self.profile,
            "instances": self.instances,
            "tensor_parallel_size": self.tensor_parallel_size,
            "args": dict(self.args),
            "env": dict(self.env),
            "install": {"method": self.install, "directory_id": self.engine_directory_id},
            "fit": self.fit.record(),
            "device_memory": self.fit.device.record() if self.fit.device else None,
            "status": self.status,
            "evidence": self.evidence,
            "notes": list(self.notes),
            "alternatives": [alternative.record() for alternative in self.alternatives],
            "provenance": {key: origin.record() for key, origin in sorted(self.provenance.items())},
        }


def holds(condition: FactCondition, facts: Mapping[str, Any]) -> bool | None:
    """Whether a host's facts fulfil a condition; None where the host does not know the fact.

    Args:
        condition: the condition of a rule.
        facts: what the host reports: ``mec_firmware`` is a whole number, or None.
    """
    value = facts.get("mec_firmware")
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value < condition.mec_firmware_below


def choose(deployment: Deployment, facts: Mapping[str, Any]) -> Deployment:
    """The deployment for a host with these facts; what they do not decide stays as it is, with its note.

    Args:
        deployment: what was resolved for the class.
        facts: what the host reports.
    """
    for alternative in deployment.alternatives:
        verdict = holds(alternative.fact, facts)
        if verdict is None:
            continue
        others = tuple(other for other in deployment.alternatives if other is not alternative)
        notes = tuple(note for note in deployment.notes if note != alternative.note)
        deployment = replace(deployment, alternatives=others, notes=notes)
        if not verdict:
            deployment = _without(deployment, alternative)
    return deployment


def _without(deployment: Deployment, alternative: Alternative) -> Deployment:
    args, env = merge(deployment.args, alternative.args), merge(deployment.env, alternative.env)
    left = {key for key, _ in leaves({"args": args, "env": env})}
    provenance = {**deployment.provenance, **alternative.provenance}
    return replace(
        deployment,
        args=args,
        env=env,
        notes=(*deployment.notes, alternative.left_out),
        provenance={key: origin for key, origin in provenance.items() if key in left},
    )
