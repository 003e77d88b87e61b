"""Open creations that a person has looked into: what is in the cloud is adopted, what is not is forgotten.

``pulumi refresh --import-pending-creates`` drops what it should adopt (3.259): here the record that the engine keeps of
the creation, with all of its inputs, becomes a resource of the state, and a refresh reads the rest from the cloud.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from infra.repair import pulumi
from infra.zones import read_tries, write_tries
from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError

Deployment = dict[str, Any]


def adopt(deployment: Deployment, ids: dict[str, str], gone: Sequence[str]) -> tuple[Deployment, list[str]]:
    """A deployment without the open creations of hosts, and the URNs of those that it has got in their place.

    Args:
        deployment: as ``pulumi stack export`` has it.
        ids: host -> its id in the cloud, of those that are there.
        gone: the hosts that are not there.

    Raises:
        FleetError: there is no open creation of a host that is to be adopted.
    """
    kept, adopted = [], []
    for operation in deployment.get("pending_operations") or []:
        name = operation["resource"]["urn"].split("::", 3)[3]
        if operation["type"] != "creating" or name not in {*ids, *gone}:
            kept.append(operation)
        elif name in ids:
            adopted.append({**operation["resource"], "id": ids[name]})
    if missing := sorted(set(ids) - {each["urn"].split("::", 3)[3] for each in adopted}):
        raise FleetError(f"no creation of {missing[0]} is open", "adopt only what a run that was cut off began")
    now = {**deployment, "resources": [*(deployment.get("resources") or []), *adopted], "pending_operations": kept}
    return now, [each["urn"] for each in adopted]


def settle(stack: str, adopted: Sequence[str], gone: Sequence[str]) -> None:
    """Ends open creations as a person has found them in the cloud; the stack's fleet may then be made on.

    Args:
        stack: the stack, which has its fleet's name.
        adopted: ``HOST=ID`` of those that are there.
        gone: the hosts that are not there.

    Raises:
        FleetError: an argument of another form, no such creation, or the engine could not write the state.
    """
    if wrong := [each for each in adopted if not each.partition("=")[2]]:
        raise FleetError(f"{wrong[0]!r} names no id", "write --adopt HOST=ID")
    ids = {host: id_ for host, _, id_ in (each.partition("=") for each in adopted)}
    directory = paths.inventories_dir() / stack
    exported = json.loads(pulumi(["pulumi", "stack", "export", "--stack", stack]))
    exported["deployment"], urns = adopt(exported["deployment"], ids, gone)
    pulumi(["pulumi", "stack", "import", "--stack", stack], json.dumps(exported))
    if urns:
        targets = [f"--target={urn}" for urn in urns]
        pulumi(["pulumi", "refresh", "--stack", stack, *targets, "--yes", "--skip-preview", "--non-interactive"])
    tries = read_tries(directory)
    for host in {*ids, *gone} & set(tries):
        tries[host] |= {"answered": True, "made": host in ids}
    write_tries(directory, tries)
