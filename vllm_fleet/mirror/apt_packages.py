"""The Debian packages that the hosts of a plan install, from their distribution and from vendors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet import weights_disk
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.host import container, container_toolkit, drivers, model_disk
from vllm_fleet.host.apt_repositories import TOOLS, Repository
from vllm_fleet.host.manifest import baseline_items
from vllm_fleet.mirror import apt_lists
from vllm_fleet.mirror.store import part_key
from vllm_fleet.schema.distribution import Distribution
from vllm_fleet.schema.recipe import Machine

#: Required by Ansible's apt module, and by a host of the fleet that becomes its mirror.
_TOOLS = ("python3-apt", "nginx-light", "rsync")
_REGISTRY = "docker-registry"
_GATEWAY = ("haproxy",)
_TLS = ("openssl",)
_ACME = ("certbot",)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, order=True)
class PackageSet:
    """Packages that apt installs together.

    Attributes:
        packages: each as NAME or NAME=VERSION.
        pins: what the hosts have in apt's preferences for them, also for what they depend on.
    """

    packages: tuple[str, ...]
    pins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Debs:
    """Packages of a distribution and of vendors with their dependencies, and the signed lists of both.

    Attributes:
        sets: the packages of each kind of host, separately: two kinds may need two versions of one package.
        repositories: the vendors' repositories.
    """

    distribution: str
    record: Distribution
    architecture: str
    sets: tuple[PackageSet, ...]
    repositories: tuple[Repository, ...] = ()

    @property
    def key(self) -> str:
        """The part's name."""
        vendors = [[repository.key_name, repository.variables["systems"]] for repository in self.repositories]
        sets = [[each.packages, each.pins] for each in self.sets]
        return part_key("debs", self.distribution, self.architecture, sets, self.record.model_dump(), vendors)

    @property
    def origins(self) -> Iterator[apt_lists.Origin]:
        """Every suite of every archive."""
        yield from apt_lists.distribution_origins(self.distribution, self.record)
        for repository in self.repositories:
            if source := repository.source(self.distribution):
                yield from apt_lists.vendor_origins(self.distribution, repository.name, source)


def mirrored_distribution(plan: Plan, catalog: Catalog) -> tuple[str, Distribution] | None:
    """The distribution whose packages the fleet's mirror holds; None for a mirror without packages."""
    name = plan.spec.mirror.distribution
    return (name, catalog.distributions.distributions[name]) if name else None


def host_machine(host: HostPlan, catalog: Catalog) -> Machine:
    """The architecture of a host, as its kernel names it."""
    return catalog.host_class(host.host_class).machine if host.host_class else "x86_64"


def list_packages(plan: Plan, catalog: Catalog) -> Iterator[Debs]:
    """The packages of the hosts of a plan, for each architecture; none for a mirror without packages.

    Raises:
        FleetError: a vendor has no packages for the distribution.
    """
    chosen = mirrored_distribution(plan, catalog)
    if chosen is None:
        return
    sets: dict[str, set[PackageSet]] = {}
    vendors: dict[str, dict[str, Repository]] = {}
    for host in plan.hosts:
        architecture = _ARCHITECTURES[host_machine(host, catalog)]
        host_sets = sets.setdefault(architecture, set())
        wanted = _packages(plan, host, chosen[1].python)
        for repository, packages in _vendors(plan, catalog, host, chosen[0]):
            wanted.update(TOOLS)
            if repository.is_on_hosts:
                continue
            if repository.source(chosen[0]) is None:
                raise plan.document.error(
                    ("mirror", "distribution"),
                    f"recipes/drivers.yml has no {repository.name} for {chosen[0]}, which {host.name} needs",
                    f"use one of {', '.join(repository.systems)}, or name a copy in artifacts.repositories",
                    ErrorCode.REFUSED,
                )
            vendors.setdefault(architecture, {})[repository.name] = repository
            host_sets.add(packages)
        host_sets.add(PackageSet(tuple(sorted(wanted))))
    for architecture, packages_of_hosts in sets.items():
        yield Debs(
            *chosen, architecture, tuple(sorted(packages_of_hosts)), tuple(vendors.get(architecture, {}).values())
        )


def find_missing(plan: Plan, catalog: Catalog) -> tuple[FleetError, ...]:
    """Errors of packages that the mirror cannot hold: the fleet can be planned, and ``site.yml`` refuses its hosts."""
    try:
        tuple(list_packages(plan, catalog))
    except FleetError as error:
        return (error,)
    return ()


def _packages(plan: Plan, host: HostPlan, python: str) -> set[str]:
    """The packages that a host needs from its distribution."""
    wanted = {item["name"] for item in baseline_items() if item["kind"] == "package"}
    wanted |= {*_TOOLS, *plan.spec.mirror.packages}
    if host.kind == "gateway":
        tls = plan.gateway.tls
        wanted.update((*_GATEWAY, *(_TLS if tls else ()), *(_ACME if tls and tls.acme else ())))
    wanted.update(host.deployment.packages if host.deployment else ())
    install = host.deployment.install if host.deployment else None
    if host.deployment and host.rented and weights_disk.find(host.rented).count > 1:
        wanted.add(model_disk.MDADM)
    if install == "wheel":
        wanted.add(f"python{python}-venv")
    elif install == "docker":
        wanted.update(container.PACKAGES)
    if plan.spec.mirror.registry_port:
        wanted.add(_REGISTRY)
    return wanted


def _vendors(plan: Plan, catalog: Catalog, host: HostPlan, system: str) -> Iterator[tuple[Repository, PackageSet]]:
    """The vendors' repositories of a host, each with the packages that it installs from it on a system.

    Raises:
        FleetError: the host's driver has no packages for the system.
    """
    driver = drivers.host_driver(plan, catalog, host)
    if driver and driver.repositories:
        wanted = PackageSet(driver.packages(system), driver.pins)
        for repository in driver.repositories:
            yield repository, wanted
        if not wanted.packages:
            raise plan.document.error(
                ("mirror", "distribution"),
                f"recipes/drivers.yml has no driver packages for {system}, which {host.name} needs",
                f"use one of {', '.join(driver.variables['driver_packages_names'])}",
                ErrorCode.REFUSED,
            )
    if toolkit := container_toolkit.host_toolkit(plan, catalog, host):
        yield toolkit.repository, PackageSet(toolkit.packages)
