"""``stack.json``: the As-Is that the Pulumi stack wrote, checked against the plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from vllm_fleet import paths
from vllm_fleet.errors import FleetError
from vllm_fleet.fleet_schema import Stack
from vllm_fleet.plan import HostPlan, Plan


@dataclass(frozen=True)
class Location:
    """How a host is reached."""

    address: str
    port: int
    user: str
    ssh_host_key: str


def locations(plan: Plan) -> Mapping[str, Location]:
    """Where every host of the plan is: static hosts from the fleet, all others from the stack.

    Raises:
        FleetError: no stack, one of another version or fleet, a host too few or too many.
    """
    rented = [host for host in plan.hosts if host.cloud != "static"]
    made = _read(plan).hosts if rented else {}
    file = paths.display(plan.directory / "stack.json")
    missing = [host.name for host in rented if host.name not in made]
    extra = sorted(set(made) - {host.name for host in rented})
    if missing or extra:
        told = [f"{name} is in {plan.document.file} but not in {file}" for name in missing]
        told += [f"{name} is in {file} but not in {plan.document.file}" for name in extra]
        raise FleetError("; ".join(told), "run 'pulumi up'", file)
    return {
        host.name: _static(host)
        if host.cloud == "static"
        else Location(made[host.name].address, 22, made[host.name].user, made[host.name].ssh_host_key)
        for host in plan.hosts
    }


def _static(host: HostPlan) -> Location:
    if host.address is None or host.ssh_host_key is None:
        raise FleetError("a static host has an address and an ssh_host_key", host=host.name)
    return Location(host.address, host.port, host.user, host.ssh_host_key)


def _read(plan: Plan) -> Stack:
    path = plan.directory / "stack.json"
    file = paths.display(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FleetError(f"the hosts of {plan.document.file} are not made yet", "run 'pulumi up'", file) from None
    except ValueError as fault:
        raise FleetError(f"is not JSON: {fault}", "run 'pulumi up --refresh' to write it again", file) from None
    version = data.get("version") if isinstance(data, dict) else None
    if version != 1:
        raise FleetError(
            f"is of version {version!r}, this release reads version 1", "run 'pulumi up' with this release", file
        )
    try:
        stack = Stack.model_validate(data)
    except ValidationError as faults:
        first = faults.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise FleetError(str(first["msg"]), "run 'pulumi up' to write it again", file, key=key) from None
    if stack.fleet != plan.fleet:
        raise FleetError(
            f"is of the fleet {stack.fleet!r}, {plan.document.file} is of {plan.fleet!r}",
            "select the stack of this fleet",
            file,
            key="fleet",
        )
    return stack
