"""NVIDIA's container toolkit: what a host of a fleet gets of it, and from where."""

from __future__ import annotations

from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.host import apt_repositories, drivers
from vllm_fleet.host.apt_repositories import MirroredSystem
from vllm_fleet.host.container import Toolkit


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
    found = apt_repositories.of(catalog, recipe.repository, sized.machine, apt_repositories.copies(plan))
    return Toolkit(found.served_by(mirror), recipe.packages, drivers.mode_of(plan, host) == "managed")
