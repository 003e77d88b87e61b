"""Drift of hosts -> what is applied in place, by one program on each host, instead of the tasks of its roles.

A role is applied in place as a whole or not at all: if one of its items needs more than a file, a directory, an account
or a unit, its tasks run. docs/adr/0010-items-are-applied-in-place.md says why.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.foreign_text import UnreadableError, clean_text, parse_record
from vllm_fleet.edge import ssh
from vllm_fleet.edge.connection import CONCURRENCY, JumpHosts, NoAnswerError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.facts.host_answer import Applied
from vllm_fleet.facts.states import NOT_RUNNING, DriftState
from vllm_fleet.host.manifest_items import Item, item_name
from vllm_fleet.inventory import SiteHost
from vllm_fleet.operate import drift

#: The roles whose items are applied in place, in the order in which they need each other.
ROLES = ("host_baseline", "vllm_firewall", "vllm_service")
#: Its tasks come before those of all others: it installs packages that the host itself will serve, which its own
#: host_baseline makes the only source of packages.
_FIRST = "mirror"
#: Those of them that a host must not serve with meanwhile: the rollout applies them while it has no traffic.
_OF_IDLE_HOSTS = frozenset({"vllm_firewall", "vllm_service"})
#: The groups of devices, which the unit of an instance names.
GROUPS = ("video", "render")
_SECONDS = 120.0
_CORRECTED = frozenset({DriftState.MISSING, DriftState.WRONG_MODE, DriftState.WRONG_OWNER, DriftState.WRONG_GROUP})
_STATES: Mapping[str, frozenset[DriftState]] = {
    "directory": _CORRECTED,
    "file": _CORRECTED | {DriftState.WRONG_CONTENT},
    "user": frozenset({DriftState.MISSING}),
    "unit": NOT_RUNNING | {DriftState.NOT_ENABLED, DriftState.NOT_RELOADED},
}


@dataclass(frozen=True)
class Work:
    """What one host applies.

    Attributes:
        items: items of its manifest, in their order.
        contents: SHA-256 -> text, for the files among them.
    """

    items: tuple[Item, ...]
    contents: Mapping[str, str]

    def question(self, *, diff: bool) -> str:
        """What the program on the host reads.

        Args:
            diff: whether it answers with the old content of files.
        """
        record = {"items": self.items, "contents": dict(self.contents), "groups": GROUPS, "diff": diff}
        return json.dumps(record, separators=(",", ":"))


def plan_work(host: SiteHost, drifted: Sequence[Mapping[str, str]], *, idle: bool) -> Work:
    """What is applied in place on a host; nothing if the tasks of its roles must run.

    Args:
        host: the host.
        drifted: what the run has found to differ on it.
        idle: whether no instance runs on it.
    """
    if any(each["role"] == _FIRST for each in drifted):
        return Work((), {})
    contents = _contents(host)
    chosen: list[Item] = []
    for role in ROLES:
        own = [each for each in drifted if each["role"] == role and not _is_release(each)]
        if not own:
            continue
        if role in _OF_IDLE_HOSTS and not idle:
            break
        states = {(each["kind"], each["what"]): DriftState(each["state"]) for each in own}
        items = [
            item for item in host.manifest.items if item["role"] == role and (item["kind"], item_name(item)) in states
        ]
        if not all(_is_applied(item, states, contents) for item in items):
            break
        chosen += [item for item in items if item["kind"] != "table"]
    needed = {str(item["sha256"]) for item in chosen if item["kind"] == "file"}
    return Work(tuple(chosen), {digest: contents[digest] for digest in sorted(needed)})


def _is_release(record: Mapping[str, str]) -> bool:
    """Whether drift is that of a release, which a rollout brings."""
    return record["role"] == "vllm_service" and not drift.is_installed_once(record)


def _is_applied(item: Item, states: Mapping[tuple[str, str], DriftState], contents: Mapping[str, str]) -> bool:
    if item["kind"] == "table":
        # Its unit loads it when it starts.
        return any(kind == "unit" and state in NOT_RUNNING for (kind, _), state in states.items())
    if item["kind"] == "file" and item.get("sha256") not in contents:
        return False
    return states[item["kind"], item_name(item)] in _STATES.get(item["kind"], frozenset())


def _contents(host: SiteHost) -> Mapping[str, str]:
    """SHA-256 -> text of all that the roles write: their own files, and the texts among the variables of a host."""
    own = [value for value in host.variables.values() if isinstance(value, str)]
    return {**_role_files(), **{hashlib.sha256(text.encode()).hexdigest(): text for text in own}}


@cache
def _role_files() -> Mapping[str, str]:
    found = (file for role in ROLES for file in sorted((paths.root() / "roles" / role / "files").iterdir()))
    # Not a folder, such as that of Python's bytecode.
    files = [file for file in found if file.is_file()]
    return {hashlib.sha256(file.read_bytes()).hexdigest(): file.read_text(encoding="utf-8") for file in files}


def apply_work(works: Sequence[tuple[Target, Work]], *, diff: bool) -> Mapping[str, Applied | str]:
    """Has every host apply its work, all from one process.

    Args:
        works: hosts with what they apply.
        diff: whether they answer with the old content of files.

    Returns:
        Host name -> what it has applied, or why it gave no answer.
    """
    return asyncio.run(_apply_all(works, diff))


async def _apply_all(works: Sequence[tuple[Target, Work]], diff: bool) -> Mapping[str, Applied | str]:
    gate = asyncio.Semaphore(CONCURRENCY)
    source = ssh.pack_program("host_apply")

    async def apply_one(target: Target, work: Work) -> Applied | str:
        command = ssh.python_command(target.user, source, password=target.become_password is not None)
        async with gate:
            try:
                answer = ssh.run_json(target, command, work.question(diff=diff), jump_hosts)
                return parse_record(Applied, await asyncio.wait_for(answer, _SECONDS))
            except (NoAnswerError, UnreadableError) as fault:
                return str(fault)
            except TimeoutError:
                return f"no answer within {_SECONDS:.0f} s"

    async with JumpHosts() as jump_hosts:
        answers = await asyncio.gather(*(apply_one(target, work) for target, work in works))
    return {target.name: answer for (target, _), answer in zip(works, answers, strict=True)}


def diffs_of(host: str, applied: Applied) -> Iterator[Mapping[str, Any]]:
    """The differences of files, as Ansible prints them.

    Args:
        host: the name of the host.
        applied: its answer.
    """
    for each in applied.diffs:
        shown = {key: "".join(f"{clean_text(line)}\n" for line in text.splitlines()) for key, text in each.items()}
        path = shown["after_header"].strip()
        yield {**shown, "before_header": f"{host}: {path}", "after_header": f"{host}: {path}"}
