"""The outside world: SSH, HTTP, package indexes, registries, the hub, Pulumi."""
