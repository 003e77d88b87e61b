"""Takes hosts out of their fleet: writes down what was there before the first role, and removes the rest on request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.host.manifest import Manifest
from vllm_fleet.operate.host_programs import run_on_hosts

_RECORD = ("host_record", "docker_engine", "neighbours")
_LEAVE = ("host_leave", "docker_engine", "neighbours", "host_record")


@dataclass(frozen=True)
class Left:
    """What a host has removed, or would remove.

    Attributes:
        removed: what is gone.
        kept: what stays, with the reason.
    """

    removed: tuple[str, ...]
    kept: tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Options:
    """What else is removed.

    Attributes:
        check: only say what would be removed.
        packages: remove the packages that the toolkit installed.
        keep_models: keep the weights.
    """

    check: bool = False
    packages: bool = False
    keep_models: bool = False


def record_hosts(hosts: Sequence[tuple[Target, Manifest]], *, check: bool) -> tuple[list[str], list[FleetError]]:
    """Writes down on each host what is there before a role touches it.

    Args:
        hosts: how to reach each, with its manifest.
        check: change nothing.

    Returns:
        The hosts whose record changed, and an error for each host that failed.
    """
    questions = [(target, {"items": list(manifest.items), "check": check}) for target, manifest in hosts]
    answers, errors = run_on_hosts(_RECORD, questions)
    return sorted(name for name, answer in answers.items() if answer.get("changed") is True), errors


def leave_host(target: Target, options: Options) -> Left:
    """Removes what the toolkit has made on a host; the next call continues an interrupted one.

    Raises:
        FleetError: the host gives no answer, or something could not be removed.
    """
    question = {"check": options.check, "packages": options.packages, "keep_models": options.keep_models}
    answers, errors = run_on_hosts(_LEAVE, [(target, question)])
    if errors:
        raise errors[0]
    answer: Mapping[str, Any] = answers[target.name]
    if answer["failed"]:
        raise FleetError(
            f"could not remove {'; '.join(answer['failed'])}",
            "repair it and run the command again: it continues",
            host=target.name,
            code=ErrorCode.WORK_FAILED,
        )
    return Left(tuple(map(str, answer["removed"])), tuple(answer["kept"]))
