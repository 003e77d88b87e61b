"""Connections to other machines and programs: SSH, HTTP, package indexes, registries, the hub, apt, Pulumi."""
