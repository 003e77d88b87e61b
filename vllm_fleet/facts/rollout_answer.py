"""What the programs ``vllm-release`` and ``vllm-gateway`` answer, as strict records: a host is a stranger."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from vllm_fleet.base.foreign_text import CleanText, Foreign, ForeignPart, parse_record
from vllm_fleet.facts.host_answer import Count, Word

Words = Annotated[list[Word], Field(max_length=4096)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
#: The end of a log.
Lines = Annotated[list[CleanText], Field(max_length=1000)]


class Failed(Foreign):
    """Why a program could not do its work, what an instance has logged, and which run is in the way.

    Attributes:
        absent: whether the host does not have the program yet.
    """

    fault: CleanText
    log: Lines = Field(default=[])
    owner: CleanText = ""
    absent: bool = False


class Begun(Foreign):
    """The answer to ``vllm-release begin``.

    Attributes:
        stale: the instances that do not run with the release.
        surplus: units of vLLM that the release does not have.
        running: units of vLLM that run.
        accepted: the release that was accepted last.
        on_trial: whether there is something to do.
        wrote: whether files of the release were not there.
        changes: a diff of the files of the release that was accepted last and of this one.
    """

    stale: Words
    surplus: Words
    running: Words
    accepted: Word | None
    on_trial: bool
    wrote: bool
    changes: Lines = Field(default=[])


class Stopped(Foreign):
    """The answer to ``vllm-release stop``; ``cached`` says whether the host has the start cache of the release."""

    stopped: Words
    cached: bool = False


class Started(Foreign):
    """The answer to ``vllm-release start``.

    Attributes:
        seconds: from the command to the first completion.
        steps: what vLLM has logged of the steps of its start, in seconds, and the tokens of its KV cache.
    """

    seconds: Seconds
    steps: Annotated[dict[Word, Annotated[float, Field(ge=0, le=1e15)]], Field(max_length=64)] = Field(default={})


class CachePacked(Foreign):
    """The answer of the start cache: whether there is one, and the digest and size of its archive."""

    exists: bool
    sha256: Word = ""
    bytes: Count = 0


class CacheUnpacked(Foreign):
    """The answer of the start cache: whether the copy was unpacked; the host may have one of its own."""

    made: bool


class CacheRemoved(Foreign):
    """The answer of the start cache: whether there was one."""

    removed: bool


class Accepted(Foreign):
    """The answer to ``vllm-release accept``: the release, and the old ones that were removed."""

    accepted: Word
    removed: Words


class WentBack(Foreign):
    """The answer to ``vllm-release back``: the release that serves again, None if no release ever did."""

    to: Word | None
    restarted: Words


class Instance(Foreign):
    """An instance of a release, as the host has noted it."""

    name: Word
    unit: Word
    runtime_directory: Word
    loaded: CleanText
    files: Words


class Status(Foreign):
    """The answer to ``vllm-release status``.

    Attributes:
        accepted: the release that was accepted last.
        trial: the one that is on trial, with its owner and its end.
        previous: the last good one before the accepted one.
        previous_instances: its instances.
        states: unit of vLLM -> its state.
    """

    accepted: Word | None
    trial: dict[Word, Any] | None
    previous: Word | None
    previous_instances: Annotated[list[Instance], Field(max_length=4096)]
    states: dict[Word, Word]


class Renewed(ForeignPart):
    """The answer to ``renew`` of both programs."""


class GateResult(Foreign):
    """What a gate has found on one instance.

    Attributes:
        why: why it does not pass; empty if it does.
        lines: what shows it.
        figures: what it has measured.
    """

    gate: Word
    instance: Word
    passed: bool
    why: CleanText
    lines: Lines
    figures: dict[Word, Any]
    seconds: Seconds


class LogProbs(Foreign):
    """The log-probabilities of the tokens of some prompts, from the second token on."""

    logprobs: Annotated[
        list[Annotated[list[Annotated[float, Field(ge=-1e9, le=0.001)]], Field(max_length=4096)]], Field(max_length=64)
    ]


class Gated(Foreign):
    """The answer of the gates: up to the first that does not pass."""

    results: Annotated[list[GateResult], Field(max_length=4096)]


class Drain(Foreign):
    """Why a server gets no traffic, and what ends it before its time: its run, any run of ``site.yml``, a command."""

    owner: CleanText
    reason: CleanText
    since: float
    until: float
    kind: Literal["run", "site", "cordon"]


class Server(Foreign):
    """One server of a gateway."""

    name: Word
    backend: Word
    place: Word
    drained: bool
    sessions: Count
    status: Word
    drain: Drain | None


class Looked(Foreign):
    """The answer to ``vllm-gateway look``; ``haproxy`` says whether there is one yet.

    Attributes:
        counters: backend -> what HAProxy has counted since its start.
    """

    haproxy: bool
    servers: Annotated[dict[Word, Server], Field(max_length=100_000)]
    counters: Annotated[dict[Word, dict[Word, Count]], Field(max_length=4096)] = Field(default={})


class Drained(Foreign):
    """The answer to ``vllm-gateway drain``: the servers, and those that still have requests in flight."""

    haproxy: bool
    changed: bool
    servers: Words
    busy: dict[Word, Count] = Field(default={})


class Ready(Foreign):
    """The answer to ``vllm-gateway ready``: the servers, those that are not up, and the drains of others that stay."""

    haproxy: bool
    changed: bool
    servers: Words
    late: dict[Word, Word] = Field(default={})
    left: list[CleanText] = Field(default=[], max_length=4096)


Answer = TypeVar("Answer", bound=Foreign | ForeignPart)


def parse_answer(kind: type[Answer], answer: str) -> Answer | Failed:
    """An answer of one of the programs.

    Args:
        kind: the record of the command.
        answer: what the program has printed.

    Raises:
        UnreadableError: it is neither that record nor a failure.
    """
    # A cheap look decides, since a record has no key of that name.
    return parse_record(Failed, answer) if '"fault"' in answer[:32] else parse_record(kind, answer)


def question(**values: Any) -> dict[str, Any]:
    """A question to one of the programs, without the values that are None."""
    return {key: value for key, value in values.items() if value is not None}
