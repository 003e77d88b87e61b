"""The Pulumi program: it creates the hosts of the fleet that has the stack's name."""

import pulumi

from infra.fleet import program

pulumi.export("inventory", program(pulumi.get_stack()).inventory)
