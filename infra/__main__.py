"""The Pulumi program: the stack's name is the fleet's, its hosts are those of the fleet's plan."""

import pulumi

from infra.fleet import program

pulumi.export("inventory", program(pulumi.get_stack()).inventory)
