"""Takes hosts out of their fleet: writes down what was there before the first role, and removes the rest on request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.edge import ssh
from vllm_fleet.edge.connection import CONCURRENCY, JumpHosts, NoAnswerError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.host.manifest import Manifest

#: A host may have terabytes to look through.
SECONDS = 600.0
_RECORD_SECONDS = 120.0


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
class Recorded:
    """What a host has written down.

    Attributes:
        changed: whether it has extended its record.
        first_boot: whether cloud-init is on it, which may still be at work.
    """

    changed: bool
    first_boot: bool


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


def record_command(user: str = "root", *, password: bool = False) -> str:
    """The command that records.

    Args:
        user: the account of the connection; root where the connection becomes root by itself.
        password: whether sudo may ask for a password.
    """
    return ssh.python_command(user, ssh.pack_program("host_record", "docker_engine", "neighbours"), password=password)


def leave_command(user: str = "root", *, password: bool = False) -> str:
    """The command that removes.

    Args:
        user: the account of the connection; root for Ansible's connection, which becomes root by itself.
        password: whether sudo may ask for a password.
    """
    program = ssh.pack_program("host_leave", "docker_engine", "neighbours", "host_record")
    return ssh.python_command(user, program, password=password)


def record_question(manifest: Manifest, *, check: bool) -> str:
    """What the program that records reads: the items of a host, its fleet, and whether it changes nothing."""
    return json.dumps({"items": list(manifest.items), "fleet": manifest.fleet, "check": check})


def leave_question(options: Options) -> str:
    """What the program that removes reads."""
    return json.dumps(asdict(options))


def _failure(host: str, why: str) -> FleetError:
    return FleetError(why, "repair it and run the command again: it continues", host=host, code=ErrorCode.WORK_FAILED)


def _parse(host: str, out: str, err: str) -> Mapping[str, Any]:
    try:
        answer = json.loads(out)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        last = err.strip().splitlines()[-1:] or ["it printed nothing"]
        raise _failure(host, f"gave no answer: {last[0][:300]}")
    return answer


def parse_recorded(host: str, out: str, err: str) -> Recorded:
    """What a host has recorded.

    Raises:
        FleetError: its answer is not valid.
    """
    answer = _parse(host, out, err)
    return Recorded(answer.get("changed") is True, answer.get("first_boot") is not False)


def record_hosts(works: Sequence[tuple[Target, Manifest]], *, check: bool) -> Mapping[str, Recorded | FleetError]:
    """Has hosts extend their records, all from one process.

    Args:
        works: hosts with their manifests.
        check: whether they change nothing.

    Returns:
        Host name -> what it has recorded, or why it gave no answer.
    """
    return asyncio.run(_record_all(works, check))


async def _record_all(works: Sequence[tuple[Target, Manifest]], check: bool) -> Mapping[str, Recorded | FleetError]:
    gate = asyncio.Semaphore(CONCURRENCY)

    async def record_one(target: Target, manifest: Manifest) -> Recorded | FleetError:
        command = record_command(target.user, password=target.become_password is not None)
        async with gate:
            try:
                answer = ssh.run_json(target, command, record_question(manifest, check=check), jump_hosts)
                return parse_recorded(target.name, await asyncio.wait_for(answer, _RECORD_SECONDS), "")
            except FleetError as fault:
                return fault
            except (NoAnswerError, TimeoutError) as fault:
                return _failure(target.name, str(fault) or f"no answer within {_RECORD_SECONDS:.0f} s")

    async with JumpHosts() as jump_hosts:
        found = await asyncio.gather(*(record_one(target, manifest) for target, manifest in works))
    return {target.name: each for (target, _), each in zip(works, found, strict=True)}


def parse_left(host: str, out: str, err: str) -> Left:
    """What a host has removed and kept.

    Raises:
        FleetError: its answer is not valid, or something could not be removed.
    """
    answer = _parse(host, out, err)
    if failed := [str(text) for text in answer.get("failed") or ()]:
        raise _failure(host, f"could not remove {'; '.join(failed)}")
    kept = tuple({"what": str(row["what"]), "why": str(row["why"])} for row in answer.get("kept") or ())
    return Left(tuple(map(str, answer.get("removed") or ())), kept)


def check_leave(target: Target, options: Options) -> Left:
    """What a host would remove. It changes nothing.

    Raises:
        FleetError: the host gives no answer.
    """
    question = leave_question(Options(check=True, packages=options.packages, keep_models=options.keep_models))

    async def wait() -> str:
        command = leave_command(target.user, password=target.become_password is not None)
        return await asyncio.wait_for(ssh.run_json(target, command, question), SECONDS)

    try:
        return parse_left(target.name, asyncio.run(wait()), "")
    except (NoAnswerError, TimeoutError) as fault:
        raise _failure(target.name, str(fault) or f"no answer within {SECONDS:.0f} s") from None
