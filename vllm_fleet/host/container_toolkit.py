"""NVIDIA's container toolkit on the hosts of a fleet: versions and repository."""

from __future__ import annotations

from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.host import drivers
from vllm_fleet.host.apt_repositories import MirroredSystem, choose_repository, fleet_copies
from vllm_fleet.host.container import Toolkit


def host_toolkit(plan: Plan, catalog: Catalog, host: HostPlan, mirror: MirroredSystem | None = None) -> Toolkit | None:
    """The container toolkit of a host; None for a host without NVIDIA GPUs or without containers.

    Args:
        plan: the fleet.
        catalog: the recipes.
        host: the host.
        mirror: the fleet's mirror, where it has packages.

    Raises:
        FleetError: the fleet names a repository or a key file that does not exist.
    """
    deployment = host.deployment
    if deployment is None or deployment.install != "docker":
        return None
    sized = catalog.host_class(deployment.host_class)
    if sized.family.vendor != "nvidia":
        return None
    recipe = catalog.drivers.container_toolkit
    repository = choose_repository(catalog, recipe.repository, sized.machine, fleet_copies(plan))
    return Toolkit(repository.served_by(mirror), recipe.packages, drivers.driver_mode(plan, host) == "managed")
