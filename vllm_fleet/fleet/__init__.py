"""A fleet's plan and its stack: hosts, networks, SSH routes, disks, cost, replacements."""
