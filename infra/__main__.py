"""The Pulumi program: it creates the hosts of the fleet that has the stack's name."""

import asyncio

import pulumi

from infra.fleet import program


async def main() -> pulumi.Inputs:
    """Makes the resources; the stack's output is the inventory."""
    fleet = program(pulumi.get_stack())
    # Once all registrations have begun, the SDK waits for each of them. Otherwise it waits for all outputs again after
    # each one that is known: at 1000 hosts, minutes of CPU.
    await asyncio.sleep(0)
    return {"inventory": fleet.inventory}


pulumi.run(main)
