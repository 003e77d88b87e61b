"""NVIDIA's container toolkit: what a host of a fleet gets of it, and from where."""

from __future__ import annotations

from vllm_fleet import drivers, repositories
from vllm_fleet.catalog import Catalog
from vllm_fleet.images import Toolkit
from vllm_fleet.plan import HostPlan, Plan
from vllm_fleet.repositories import MirroredSystem


def of_host(plan: Plan, catalog: Catalog, host: HostPlan, mirror: MirroredSystem | None = None) -> Toolkit | None:
    """The container toolkit of a host of a fleet; None for one that has no NVIDIA GPUs or no containers.

    Args:
        plan: the fleet.
        catalog: the recipes.
        host: the host.
        mirror: the fleet's mirror, where it has packages.

    Raises:
        FleetError: the fleet names a repository or a key that is not there.
    """
    deployment = host.deployment
    if deployment is None or deployment.install != "docker":
        return None
    sized = catalog.host_class(deployment.host_class)
    if sized.family.vendor != "nvidia":
        return None
    recipe = catalog.drivers.container_toolkit
    found = repositories.of(catalog, recipe.repository, sized.machine, repositories.copies(plan))
    return Toolkit(found.served_by(mirror), recipe.packages, drivers.mode_of(plan, host) == "managed")
