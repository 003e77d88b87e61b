"""What ``pulumi up`` does to each host, and the flag that permits a replacement."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vllm_fleet.base.errors import ErrorCode, FleetError, raise_all
from vllm_fleet.fleet import stack
from vllm_fleet.fleet.plan import Plan

What = Literal["create", "update", "replace", "delete"]
#: Names the hosts that one ``pulumi up`` may replace; infra/fleet.py reads it.
VARIABLE = "FLEET_REPLACE_SERVING"
_HOSTS = (
    "aws:ec2/instance:Instance",
    "gcp:compute/instance:Instance",
    "azure-native:compute:VirtualMachine",
    "oci:Core/instance:Instance",
    "digitalocean:index/droplet:Droplet",
    "pulumi-python:dynamic/lab:Host",
)
_MODEL_DISKS = ("aws:ebs/volume:Volume", "gcp:compute/disk:Disk")
_OF_MODELS = "-models"
#: What the engine calls a step -> what it means for the host; a step that is not here leaves the host alone.
_STEPS: Mapping[str, What] = {
    "create": "create",
    "update": "update",
    "replace": "replace",
    "create-replacement": "replace",
    "delete-replaced": "replace",
    "delete": "delete",
}
#: The name of a pool, which has a limit of its own, with the number of a host; or that of a static host.
_HOST = re.compile(r"[a-z][a-z0-9-]*")
OPTION = "--replace-serving"
_ORDER: tuple[What, ...] = ("create", "update", "replace", "delete")


@dataclass(frozen=True)
class Change:
    """What would happen to one host, with its disk for models.

    Attributes:
        host: the host.
        what: the worst that would happen to it.
        why: the properties that ask for it, as Pulumi names them.
        protected: the URNs that Pulumi will not delete before their protection is taken away.
    """

    host: str
    what: What
    why: tuple[str, ...] = ()
    protected: tuple[str, ...] = field(default=(), repr=False)

    @property
    def ends_it(self) -> bool:
        """Whether the host would stop serving."""
        return self.what in ("replace", "delete")

    def record(self) -> dict[str, Any]:
        """The change as the JSON contract spells it."""
        return {"host": self.host, "what": self.what, "why": list(self.why)}

    def __str__(self) -> str:
        return f"{self.what} {self.host}" + (f" ({', '.join(self.why)})" if self.why else "")


def known_changes(plan: Plan, made: Iterable[str]) -> tuple[Change, ...]:
    """The hosts to create and to delete, from fleet.yml and stack.json, without Pulumi.

    Args:
        plan: the To-Be.
        made: the hosts of the stack.
    """
    wanted = [host.name for host in plan.hosts if host.cloud != "static"]
    there = set(made)
    come = [Change(name, "create") for name in wanted if name not in there]
    go = [Change(name, "delete", ("not in fleet.yml",)) for name in sorted(there - set(wanted))]
    return (*come, *go)


def previewed(preview: Mapping[str, Any]) -> tuple[Change, ...]:
    """What Pulumi would do, from the JSON of its preview.

    Args:
        preview: what ``pulumi preview --json`` printed.
    """
    changes: dict[str, Change] = {}
    for step in preview.get("steps") or []:
        what, host = _STEPS.get(step["op"]), host_of(step["urn"])
        if what is None or host is None:
            continue
        why = step.get("replaceReasons") or step.get("diffReasons") or []
        protected = [step["urn"]] if what == "delete" and (step.get("oldState") or {}).get("protect") else []
        old = changes.get(host, Change(host, what))
        changes[host] = replace(
            old,
            what=max(old.what, what, key=_ORDER.index),
            why=tuple(dict.fromkeys((*old.why, *(str(reason) for reason in why)))),
            protected=(*old.protected, *protected),
        )
    return tuple(changes.values())


def with_lost(changes: Iterable[Change], made: Iterable[str]) -> tuple[Change, ...]:
    """The changes, in which a host that was made and would be created says that its cloud has ended it.

    Args:
        changes: what Pulumi would do.
        made: the hosts of the stack's own file.
    """
    there = set(made)
    return tuple(
        replace(change, why=("its cloud has ended it", *change.why))
        if change.what == "create" and change.host in there
        else change
        for change in changes
    )


def host_of(urn: str) -> str | None:
    """The host that a resource is, or whose models it holds; None for another resource."""
    *_, kind, name = urn.split("::")
    kind = kind.rsplit("$", 1)[-1]
    if kind in _HOSTS:
        return name
    return name.removesuffix(_OF_MODELS) if kind in _MODEL_DISKS and name.endswith(_OF_MODELS) else None


def parse_hosts(text: str) -> list[str]:
    """The hosts of ``--replace-serving``, each once.

    Args:
        text: their names with commas between them.

    Raises:
        FleetError: it names no host, or contains words that are not host names; it carries all of them.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    errors = []
    for name in names:
        if not _HOST.fullmatch(name):
            what = f"{name[:80]!r} is not the name of a host" if name else "has no name of a host between its commas"
            hint = "give the names of hosts with a comma between them, such as h100-0,h100-1, or leave the option out"
            errors.append(FleetError(what, hint, key=OPTION))
    raise_all(errors)
    return names


def unknown_hosts(plan: Plan, allowed: Sequence[str], made: Sequence[str]) -> Iterator[FleetError]:
    """The error of each permitted host that is neither in the plan nor in the stack's own file.

    Args:
        plan: the fleet.
        allowed: the names.
        made: the hosts that the stack's file has.
    """
    there = {host.name for host in plan.hosts} | set(made)
    for name in allowed:
        if name not in there:
            text = f"{name!r} is neither a host of {plan.fleet} nor in its stack.json"
            yield FleetError(text, "correct the name", key=OPTION)


def check(plan: Plan, changes: Sequence[Change], allowed: Sequence[str]) -> None:
    """Checks that each permitted host is one that the plan replaces or deletes.

    Raises:
        FleetError: an unknown host, or one that would not be replaced.
    """
    there = {host.name for host in plan.hosts} | {change.host for change in changes}
    ending = {change.host for change in changes if change.ends_it}
    for name in allowed:
        if name not in there:
            listed = ", ".join(sorted(ending)) or "this plan replaces or deletes no host"
            raise FleetError(
                f"--replace-serving names {name!r}, which is not a host of {plan.fleet}",
                f"this plan replaces or deletes: {listed}" if ending else listed,
            )
        if name not in ending:
            raise FleetError(
                f"--replace-serving names {name}, which this plan neither replaces nor deletes",
                "remove it from --replace-serving: only a change that cannot be made in place replaces a host",
            )


def refusal(plan: Plan, changes: Sequence[Change], allowed: Sequence[str]) -> FleetError | None:
    """Why this plan is refused; None if it is permitted."""
    bad = [change for change in changes if change.ends_it and change.host not in allowed]
    if not bad or not plan.spec.protect:
        return None
    names = ",".join([*allowed, *(change.host for change in bad)])
    return FleetError(
        f"this plan would {', '.join(str(change) for change in bad)}: these hosts would stop serving",
        f"to permit it: vllm-fleet plan --fleet {plan.fleet} --replace-serving {names}",
        plan.document.file,
        code=ErrorCode.REFUSED,
    )


def commands(plan: Plan, changes: Sequence[Change], allowed: Sequence[str]) -> tuple[str, ...]:
    """The commands that replace or delete only the permitted hosts."""
    mine = [change for change in changes if change.host in allowed and change.ends_it]
    lines = [
        # Only the state can release a host that the program no longer names.
        shlex.join(["pulumi", "state", "unprotect", "--yes", "--stack", plan.fleet, urn])
        for change in mine
        for urn in change.protected
    ]
    replaced = [change.host for change in mine if change.what == "replace"]
    up = stack.up_command(plan.fleet, *stack.refresh_options(plan))
    return (*lines, f"{VARIABLE}={','.join(replaced)} {up}" if replaced else up)
