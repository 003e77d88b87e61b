"""Settles open creations after an operator has checked the cloud: adopts hosts that exist, forgets those that do not.

``pulumi refresh --import-pending-creates`` drops what it should adopt (3.259). Here the engine's record of a creation,
with all of its inputs, becomes a resource of the state, and a refresh reads its outputs from the cloud.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from infra.tries import read_tries, write_tries
from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge.pulumi_cli import pulumi_output

Deployment = dict[str, Any]
_OWN_TYPES = "pulumi-python:dynamic/"


def pending_creations(deployment: Mapping[str, Any]) -> Iterator[str]:
    """The URNs of the creations that a deployment, as ``pulumi stack export`` has it, holds as open."""
    for operation in deployment.get("pending_operations") or []:
        if operation.get("type") == "creating":
            yield operation["resource"]["urn"]


def names_in_clouds(urns: Iterable[str]) -> list[str]:
    """The names of the resources of clouds. A new creation finds and replaces those of the project itself."""
    parts = (urn.split("::", 3) for urn in urns)
    return [name for _, _, types, name in parts if not types.rsplit("$", 1)[-1].startswith(_OWN_TYPES)]


def adopt(deployment: Deployment, ids: dict[str, str], gone: Sequence[str]) -> tuple[Deployment, list[str]]:
    """Removes the open creations of hosts from a deployment, and adds a resource for each host that exists.

    Args:
        deployment: as ``pulumi stack export`` has it.
        ids: host -> its id in the cloud, for each host that exists.
        gone: the hosts that do not exist.

    Returns:
        The new deployment, and the URNs of the resources that were added.

    Raises:
        FleetError: a host has no open creation.
    """
    kept, adopted = [], []
    settled: set[str] = set()
    for operation in deployment.get("pending_operations") or []:
        name = operation["resource"]["urn"].split("::", 3)[3]
        if operation["type"] != "creating" or name not in {*ids, *gone}:
            kept.append(operation)
            continue
        settled.add(name)
        if name in ids:
            adopted.append({**operation["resource"], "id": ids[name]})
    if missing := sorted({*ids, *gone} - settled):
        open_ = names_in_clouds(pending_creations(deployment))
        raise FleetError(
            f"the creation of {missing[0]} was not interrupted",
            f"these were: {', '.join(open_)}" if open_ else "none was",
        )
    now = {**deployment, "resources": [*(deployment.get("resources") or []), *adopted], "pending_operations": kept}
    return now, [resource["urn"] for resource in adopted]


def settle(stack: str, adopted: Sequence[str], gone: Sequence[str]) -> None:
    """Settles the open creations of a stack, so that the next ``pulumi up`` continues.

    Args:
        stack: the stack; its fleet has the same name.
        adopted: ``HOST=ID`` for each host that exists in the cloud.
        gone: the hosts that do not exist.

    Raises:
        FleetError: an argument is not ``HOST=ID``, a host has no open creation, another creation would stay open,
            zones.json is wrong, or the state could not be written.
    """
    if wrong := [argument for argument in adopted if not argument.partition("=")[2]]:
        raise FleetError(f"{wrong[0]!r} has no id", "write --adopt HOST=ID")
    ids = {host: id_ for host, _, id_ in (argument.partition("=") for argument in adopted)}
    directory = paths.inventories_dir() / stack
    # Before the state is changed: the file may be wrong.
    tries = read_tries(directory)
    exported = json.loads(pulumi_output("stack", "export", "--stack", stack))
    exported["deployment"], urns = adopt(exported["deployment"], ids, gone)
    if names := names_in_clouds(pending_creations(exported["deployment"])):
        # An import drops them, and the next run would create them a second time.
        raise FleetError(
            f"the creation of {' and '.join(names)} is open too",
            "settle all of them in one command, each with --adopt or --gone",
        )
    pulumi_output("stack", "import", "--stack", stack, text_in=json.dumps(exported))
    if urns:
        targets = [f"--target={urn}" for urn in urns]
        pulumi_output("refresh", "--stack", stack, *targets, "--yes", "--skip-preview", "--non-interactive")
    for host in {*ids, *gone} & set(tries):
        tries[host] |= {"answered": True, "made": host in ids}
    write_tries(directory, tries)
