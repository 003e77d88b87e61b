"""The Pulumi program: the stack's name is the fleet's, its hosts are those of the fleet's plan."""

import pulumi

from infra.fleet import Fleet, FleetArgs
from vllm_fleet import paths, plan
from vllm_fleet.errors import FleetError

try:
    fleet = Fleet(pulumi.get_stack(), FleetArgs(plan.load(paths.inventories_dir() / pulumi.get_stack())))
except FleetError as fault:
    raise pulumi.RunError(str(fault)) from None
pulumi.export("inventory", fleet.inventory)
