"""Refuses what a run would do to a host that serves, unless the run names the host.

The engine refuses to replace or delete a protected host by itself. It knows nothing of changes in place that stop a
host: a hook looks at each, in previews too. Hosts that leave the plan, and places and networks that cannot change, are
looked at before the first resource.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pulumi
from pydantic import ValidationError

from infra.state import State
from vllm_fleet.base.errors import ErrorCode, FleetError, raise_all
from vllm_fleet.edge.pulumi_cli import SHOW_VARIABLE
from vllm_fleet.fleet import host_changes, replacement, standing
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.schema.fleet import Stack


def named_hosts(plan: Plan, state: State) -> frozenset[str]:
    """The hosts that the environment names: this run may stop, replace or delete them.

    Raises:
        FleetError: it names a host that neither the fleet nor the state has, or two that take each other's requests.
    """
    named = [name for name in os.environ.get(replacement.VARIABLE, "").split(",") if name]
    known = {host.name for host in plan.hosts} | set(state.protected)
    if unknown := sorted(set(named) - known):
        raise FleetError(
            f"{replacement.VARIABLE} names {unknown[0]!r}, which is not a host of {plan.fleet}",
            f"vllm-fleet plan --fleet {plan.fleet} --replace-serving HOST prints what to run",
        )
    if plan.spec.protect:
        for model, hosts in replacement.by_model(plan, named).items():
            if len(hosts) > 1:
                raise FleetError(
                    f"{replacement.VARIABLE} names {' and '.join(hosts)}, which would stop at the same time: {model}",
                    f"one at a time: vllm-fleet plan --fleet {plan.fleet} --replace-serving {','.join(hosts)} prints "
                    "the commands in order; where nothing serves, protect: false lets all go",
                    code=ErrorCode.REFUSED,
                )
    return frozenset(named)


def check(plan: Plan, state: State) -> None:
    """Checks the plan against the hosts that live, before anything is made.

    Raises:
        FleetError: it would delete a host that was not released, move one, or replace a network that one stands in.
    """
    raise_all([*_moved(plan, state), *_lost_key(plan, state), *_leaving(plan, state)])


def _moved(plan: Plan, state: State) -> Iterator[FleetError]:
    living = {name: row for name, row in state.stack.get("hosts", {}).items() if name in state.protected}
    try:
        stack = Stack.model_validate({**state.stack, "hosts": living})
    except ValidationError:
        # No file yet, or one of another release, which the engine's own refusals are left to.
        return
    yield from standing.moved_errors(plan, stack)


def _lost_key(plan: Plan, state: State) -> Iterator[FleetError]:
    stay = [host.name for host in plan.hosts if host.rented and host.name in state.protected]
    if plan.access.ssh_authorised_keys and f"{plan.fleet}-deploy-key" in state.key_pairs and stay:
        yield plan.document.error(
            ("access", "ssh_authorised_keys"),
            f"would delete the key that the stack made, and {stay[0]} takes no other: all logins would end",
            "remove the key, or give it to hosts of another fleet",
            ErrorCode.REFUSED,
        )


def _leaving(plan: Plan, state: State) -> Iterator[FleetError]:
    if shows_all():
        return
    kept = {host.name for host in plan.hosts}
    if gone := sorted(name for name, protected in state.protected.items() if protected and name not in kept):
        live, them = ("lives and is", "it") if len(gone) == 1 else ("live and are", "them")
        yield FleetError(
            f"{' and '.join(gone)} {live} not in fleet.yml: this run would delete {them}",
            f"write {them} back, or release {them} by the commands that "
            f"'vllm-fleet plan --fleet {plan.fleet} --replace-serving {','.join(gone)}' prints",
            plan.document.file,
            code=ErrorCode.REFUSED,
        )


def shows_all() -> bool:
    """Whether this run is the preview of ``vllm-fleet plan``, which shows what else would be refused."""
    return pulumi.runtime.is_dry_run() and bool(os.environ.get(SHOW_VARIABLE))


class Guard:
    """The hook that looks at changes in place."""

    def __init__(self, fleet: str, unprotected: Collection[str]) -> None:
        self._fleet = fleet
        self._unprotected = unprotected
        self._binding: pulumi.ResourceHookBinding | None = None

    @property
    def hooks(self) -> pulumi.ResourceHookBinding:
        """For the options of each host, which share it: a hook is a message to the engine."""
        if self._binding is None:
            hook = pulumi.ResourceHook("host-stops", self._check, pulumi.ResourceHookOptions(on_dry_run=True))
            self._binding = pulumi.ResourceHookBinding(before_update=[hook])
        return self._binding

    async def _check(self, args: pulumi.ResourceHookArgs) -> None:
        if args.name in self._unprotected or shows_all():
            return
        olds, news = await _plain(args.old_inputs or {}), await _plain(args.new_inputs or {})
        if found := host_changes.stops(args.type, olds, news):
            what = ", ".join(map(str, found))
            raise FleetError(
                f"{args.name} would {host_changes.words(found[0].effect)} ({what}), and it may serve; other hosts may "
                "be in the same change",
                f"one at a time: vllm-fleet plan --fleet {self._fleet} --replace-serving {args.name}",
                code=ErrorCode.REFUSED,
            )


async def _plain(value: Any) -> Any:
    """A value without its marks of secrets, which would make two equal values differ."""
    if isinstance(value, pulumi.Output):
        return await _plain(await value.future())
    if isinstance(value, Mapping):
        return {key: await _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [await _plain(item) for item in value]
    return value
