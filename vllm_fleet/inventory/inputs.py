"""What the variables and the manifests of a fleet's hosts are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet.host_facts import Facts
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.fleet.stack import Location
from vllm_fleet.host.gateway_routes import Backend
from vllm_fleet.host.model_files import ModelFiles
from vllm_fleet.mirror import client


@dataclass(frozen=True)
class FleetInputs:
    """A fleet as its hosts see it.

    Attributes:
        plan: the To-Be; engines are named by the locks that are installed, variants chosen by the hosts' facts.
        catalog: the recipes.
        locations: host -> where it is.
        mirror: where the hosts fetch from.
        facts: host -> what its last probe reported.
    """

    plan: Plan
    catalog: Catalog
    locations: Mapping[str, Location]
    mirror: client.Mirrored
    facts: Facts

    @cached_property
    def gateways(self) -> tuple[HostPlan, ...]:
        """The gateways, in the order of the plan."""
        return tuple(host for host in self.plan.hosts if host.kind == "gateway")

    @cached_property
    def gateway_addresses(self) -> tuple[str, ...]:
        """The IP addresses that the gateways connect from to the other hosts."""
        return tuple(address for host in self.gateways for address in self.locations[host.name].connect_from)

    @cached_property
    def backends(self) -> tuple[Backend, ...]:
        """Every vLLM process of the fleet as the gateways see it."""
        return tuple(
            Backend(
                host.name,
                name,
                self.locations[host.name].service_address,
                port,
                host.deployment.model,
                host.names,
                host.seats,
                host.deployment.args.get("max-model-len"),
                bool(host.deployment.args.get("tool-server")),
            )
            for host in self.plan.hosts
            if host.deployment
            for name, port in host.instances
        )

    @cached_property
    def models(self) -> Mapping[str, ModelFiles]:
        """The files of every model that the fleet serves.

        Raises:
            FleetError: a model's files are neither where the fleet says nor in the mirror of this machine.
        """
        names = sorted({host.deployment.model for host in self.plan.hosts if host.deployment})
        return {name: client.find_model_files(self.plan, self.catalog, name) for name in names}
