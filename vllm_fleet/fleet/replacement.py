"""What ``pulumi up`` does to each host, and the commands that permit what stops one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vllm_fleet.base.errors import ErrorCode, FleetError, raise_all
from vllm_fleet.fleet import host_changes, stack
from vllm_fleet.fleet.plan import Plan

What = Literal["create", "update", "stop", "replace", "delete"]
#: Names the hosts that one ``pulumi up`` is for, and may stop or replace; infra/guard.py reads it.
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
#: Other resources of a host that are protected with it: type -> the rest of their name after the host's.
_BESIDE = {
    "aws:ec2/eip:Eip": "",
    "aws:ec2/volumeAttachment:VolumeAttachment": _OF_MODELS,
    "gcp:compute/address:Address": "",
    "gcp:compute/attachedDisk:AttachedDisk": _OF_MODELS,
    "azure-native:network:PublicIPAddress": "",
}
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
_ORDER: tuple[What, ...] = ("create", "update", "stop", "replace", "delete")


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
        return self.what in ("stop", "replace", "delete")

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
        if what == "update" and (stops := _stops(step)):
            what, why = "stop", list(map(str, stops))
        protected = [step["urn"]] if what == "delete" and _is_protected(step) else []
        old = changes.get(host, Change(host, what))
        changes[host] = replace(
            old,
            what=max(old.what, what, key=_ORDER.index),
            why=tuple(dict.fromkeys((*old.why, *(str(reason) for reason in why)))),
            protected=(*old.protected, *protected),
        )
    for step in preview.get("steps") or []:
        kind, name = _kind_and_name(step["urn"])
        host = name.removesuffix(_BESIDE.get(kind, ""))
        if kind in _BESIDE and step["op"] == "delete" and _is_protected(step) and host in changes:
            changes[host] = replace(changes[host], protected=(*changes[host].protected, step["urn"]))
    return tuple(changes.values())


def _stops(step: Mapping[str, Any]) -> tuple[host_changes.Stop, ...]:
    old, new = step.get("oldState") or {}, step.get("newState") or {}
    kind, _ = _kind_and_name(step["urn"])
    return host_changes.stops(kind, old.get("inputs") or {}, new.get("inputs") or {})


def _is_protected(step: Mapping[str, Any]) -> bool:
    return bool((step.get("oldState") or {}).get("protect"))


def is_host(kind: str) -> bool:
    """Whether a type of resource is a host, in any cloud."""
    return kind in _HOSTS


def _kind_and_name(urn: str) -> tuple[str, str]:
    *_, kind, name = urn.split("::")
    return kind.rsplit("$", 1)[-1], name


def by_model(plan: Plan, names: Iterable[str]) -> Mapping[str, list[str]]:
    """Hosts that take each other's requests: what they do, in words -> those of some names that the plan has."""
    chosen = frozenset(names)
    found: dict[str, list[str]] = {}
    for host in plan.hosts:
        if host.name in chosen:
            work = f"both serve {host.deployment.model}" if host.deployment else "both are gateways"
            found.setdefault(work, []).append(host.name)
    return found


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
    kind, name = _kind_and_name(urn)
    if is_host(kind):
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
            listed = ", ".join(sorted(ending)) or "this plan stops, replaces or deletes no host"
            raise FleetError(
                f"--replace-serving names {name!r}, which is not a host of {plan.fleet}",
                f"this plan stops, replaces or deletes: {listed}" if ending else listed,
            )
        if name not in ending:
            raise FleetError(
                f"--replace-serving names {name}, which this plan neither stops nor replaces nor deletes",
                "remove it from --replace-serving: other changes need no permission",
            )


def refusal(plan: Plan, changes: Sequence[Change], allowed: Sequence[str]) -> FleetError | None:
    """Why this plan is refused; None if it is permitted.

    A run for the permitted hosts leaves others that stay as they are. A host that leaves goes in any run, so it must be
    permitted.
    """
    ending = [change for change in changes if change.ends_it and change.host not in allowed]
    bad = [change for change in ending if not allowed or change.what == "delete"]
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
    """The commands that stop, replace or delete only the permitted hosts, while requests go to others.

    Hosts that leave go first and together; hosts that stay take their turn one after the other.
    """
    mine = [change for change in changes if change.host in allowed and change.ends_it]
    leave = [change for change in mine if change.what == "delete"]
    stay = sorted((change for change in mine if change.what != "delete"), key=lambda each: allowed.index(each.host))
    lines: list[str] = []
    up = stack.up_command(plan.fleet, *stack.refresh_options(plan))
    site = shlex.join(["ansible-playbook", "-i", plan.document.file, "site.yml"])
    for change in leave:
        lines += _drain(plan, change)
    # Only the state can release a host that the program no longer names.
    lines += [
        shlex.join(["pulumi", "state", "unprotect", "--yes", "--stack", plan.fleet, urn])
        for change in leave
        for urn in change.protected
    ]
    if leave:
        others = any(change.ends_it and change not in leave for change in changes)
        # Without a name, the run would be for the others too.
        lines += [_for([change.host for change in leave], up) if others else up, site]
    for change in stay:
        lines += [*_drain(plan, change), _for([change.host], up), site]
    return tuple(lines)


def _for(hosts: Sequence[str], up: str) -> str:
    """An update that is for some hosts alone."""
    return f"{VARIABLE}={','.join(hosts)} {up}"


def _drain(plan: Plan, change: Change) -> tuple[str, ...]:
    """The command that takes a host out of traffic; no gateway gives traffic to another gateway."""
    gateways = {host.name for host in plan.hosts if host.kind == "gateway"}
    if not gateways or change.host in gateways:
        return ()
    inventory = ["-i", plan.document.file]
    return (
        shlex.join(["ansible-playbook", *inventory, "playbooks/drain.yml", "-e", f"fleet_drain_host={change.host}"]),
    )
