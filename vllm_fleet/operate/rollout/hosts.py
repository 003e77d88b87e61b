"""What a rollout knows of a host before it begins, and what has become of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RolloutHost:
    """A serving host with the release that it gets.

    Attributes:
        name: the host.
        release: the digest that names the release.
        files: the files of the release: name -> text; empty for a release that is on the host already.
        instances: its instances as ``vllm-release begin`` takes them: name, unit, runtime directory, what they load.
        gateways: the gateways that send requests to it.
        servers: instance -> NAME=ADDRESS:PORT, as the gateways know it.
        seats: how many requests one instance works on at the same time; 0: unknown.
        kept: how many accepted releases stay on it.
        canary: whether it is the first host of its release, which passes all gates.
        prove: whether it passes the gates though its release stays: something below the engine was changed.
        promises: what the log of a start must say, as the role's variable has it.
        gates: what a release must pass, as the role's variable has it; empty: nothing but a start.
        cache: the directory of its start cache; empty for a host without one.
        cache_store: the folder of the controller that keeps the start caches of equal hosts.
    """

    name: str
    release: str
    files: Mapping[str, str]
    instances: tuple[Mapping[str, Any], ...]
    gateways: tuple[str, ...]
    servers: Mapping[str, str]
    seats: int = 0
    kept: int = 3
    canary: bool = True
    prove: bool = False
    promises: Sequence[Mapping[str, Any]] = ()
    gates: Mapping[str, Any] = field(default_factory=dict)
    cache: str = ""
    cache_store: str = ""

    def server(self, instance: str) -> str:
        """The name of an instance's server at the gateways."""
        return f"{self.name}_{instance}"


#: State of a host that does not serve the release, as :class:`Progress` has it -> what is told of it.
REFUSED: Mapping[str, str] = {
    "untouched": "was not touched, and has its traffic",
    "returned": "serves its last good release, since the new one was refused",
    "failed": "does not serve",
}


def tell_refused(name: str, state: str, gate: str, why: str) -> str:
    """What is told of a host that does not serve the release.

    Args:
        name: the host.
        state: one of :data:`REFUSED`.
        gate: the gate that refused it; empty where it was none of them.
        why: why it was not accepted.
    """
    place = f" at the gate {gate}" if gate else ""
    return f"{name} {REFUSED[state]}{place}: {why}"


@dataclass
class Progress:
    """What has become of a host.

    Attributes:
        state: ``same``: it had nothing to do; ``stopped``: out of traffic, its instances are stopped; ``rolling``: its
            instances follow one after the other; ``started``: proven, without traffic; ``serving``: accepted, with
            traffic; ``untouched``: nothing was begun, and it serves as before; ``returned``: it serves the last good
            release; ``failed``: it does not, or that is unknown.
        why: why it was not accepted.
        gate: the gate that refused it; empty where it was none of them.
        log: the end of what an instance has logged.
        seconds: how long each start took, by instance.
        changed: whether anything was changed on the host.
        before: instance -> the speed of the release before, measured when the host was out of traffic.
        results: the gates in their order.
        logprobs: digest of a prompt -> the log-probabilities of its tokens.
        speed: of the release on trial.
        cached: whether the host had the start cache of the release before its start.
    """

    state: str = "same"
    why: str = ""
    gate: str = ""
    log: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    changed: bool = False
    before: dict[str, Any] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    logprobs: dict[str, list[float]] = field(default_factory=dict)
    speed: dict[str, Any] | None = None
    cached: bool = False

    def record(self) -> dict[str, Any]:
        """The progress as a task returns it."""
        return dict(vars(self))

    @staticmethod
    def parse(record: Mapping[str, Any]) -> Progress:
        """The progress that a task has returned."""
        return Progress(**record)


#: The groups of hosts whose driver a run has changed below an engine that stays.
_PROVEN = ("needs_nvidia_driver", "needs_amd_driver")


def host_of_variables(name: str, own: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> RolloutHost:
    """A host of a rollout, from the variables of its roles.

    Args:
        name: the host.
        own: its variables, as :mod:`vllm_fleet.inventory.serving` gives them.
        groups: the groups of the run. One without ``rollout_canary`` takes each host as the first of its release.
    """
    files = list(own["vllm_service_unit_files"])
    instances: Sequence[Mapping[str, Any]] = own["vllm_service_instances"]
    servers = [str(place) for place in own.get("gateway_traffic_servers", ())]
    return RolloutHost(
        name,
        str(own["vllm_service_release"]),
        {str(each["name"]): str(each["content"]) for each in own["vllm_service_files"]},
        tuple(
            {
                "name": _instance_name(str(each["unit"])),
                "unit": str(each["unit"]),
                "runtime_directory": str(each["runtime_directory"]),
                "loaded": str(each["loaded"]),
                "files": files,
            }
            for each in instances
        ),
        tuple(map(str, own.get("gateway_traffic_gateways", ()))),
        {place.partition("=")[0].rpartition("_")[2]: place for place in servers},
        int(own.get("vllm_service_seats", 0)),
        int(own.get("vllm_service_kept", 3)),
        canary="rollout_canary" not in groups or name in groups["rollout_canary"],
        prove=any(name in groups.get(group, ()) for group in _PROVEN),
        promises=list(own.get("vllm_service_promises", ())),
        gates=dict(own.get("vllm_service_gates") or {}),
        cache=str(own.get("vllm_service_start_cache", "")),
        cache_store=str(own.get("vllm_service_start_cache_store", "")),
    )


def _instance_name(unit: str) -> str:
    return unit.rpartition(".")[0].rpartition("@")[2]
