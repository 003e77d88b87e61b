"""Host class -> driver: variables of the roles, items of the manifest, and the facts that the host must have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_fleet.base.digests import text_sha256
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.versions import version_key
from vllm_fleet.catalogue.catalogue import Catalog, SizedClass
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.host import apt_repositories
from vllm_fleet.host.apt_repositories import NO_COPIES, MirroredSystem, Repository
from vllm_fleet.host.manifest import Item, Manifest, file_item
from vllm_fleet.host.role_files import role_file_sha256
from vllm_fleet.schema.driver import ClassDriver, DriverMode, DriverRelease
from vllm_fleet.schema.recipe import Engine

ROLES = {"nvidia": "nvidia_driver", "amd": "amd_driver"}
PREFERENCES = "/etc/apt/preferences.d/vllm-fleet-driver"
UNATTENDED = "/etc/apt/apt.conf.d/60vllm-fleet-driver"
PERSISTENCE = "/etc/systemd/system/nvidia-persistenced.service.d/vllm-fleet.conf"
NUMA = "/etc/sysctl.d/61-vllm-fleet-amd.conf"
_MADE = "Made by vllm-fleet; another run replaces what is changed here."


@dataclass(frozen=True)
class HostDriver:
    """What one host gets.

    Attributes:
        role: the role that owns it.
        variables: of that role and of the ones that it uses.
        items: what must be true.
        facts: what the host's own facts must be, beside those of its class.
        repositories: where its packages come from; empty where none is installed.
    """

    role: str
    variables: Mapping[str, Any]
    items: tuple[Item, ...]
    facts: Mapping[str, Any]
    repositories: tuple[Repository, ...] = ()

    @property
    def packages(self) -> tuple[str, ...]:
        """What is installed, as apt takes it."""
        return tuple(self.variables["driver_packages_names"]) if self.repositories else ()

    def extend(self, manifest: Manifest) -> Manifest:
        """The manifest with this driver in it, after the items of the operating system."""
        place = next(at for at, item in enumerate(manifest.items) if item["role"] != "host_baseline")
        items = (*manifest.items[:place], *self.items, *manifest.items[place:])
        return replace(manifest, items=items, facts={**manifest.facts, **self.facts})


def default_mode(cloud: str) -> DriverMode:
    """Rented hosts start from an image that brings a driver; a host of one's own gets it from here."""
    return "managed" if cloud in ("static", "lab") else "verified"


def mode_of(plan: Plan, host: HostPlan) -> DriverMode:
    """Who installs the driver of a host, if its class has one."""
    return plan.spec.pools[host.pool].driver or default_mode(host.cloud)


def release(catalog: Catalog, row: ClassDriver, engine: Engine | None) -> DriverRelease:
    """The first release of a class that has the ROCm which an engine asks for.

    Raises:
        FleetError: none has.
    """
    floor = engine.wheel.rocm_min if engine and engine.wheel else None
    for name in row.releases:
        found = catalog.drivers.releases[name]
        if not floor or not found.rocm or version_key(found.rocm) >= version_key(floor):
            return found
    raise FleetError(
        f"no driver of recipes/drivers.yml has ROCm {floor}, which the engine asks for",
        "add a release there",
        key="engine",
        code="refused",
    )


def for_host(
    catalog: Catalog,
    sized: SizedClass,
    mode: DriverMode,
    engine: Engine | None = None,
    own: apt_repositories.Copies = NO_COPIES,
    reboot: bool = False,
    lab: bool = False,
    mirror: MirroredSystem | None = None,
) -> HostDriver | None:
    """The driver of a host; None for a class that has none.

    Args:
        catalog: the recipes.
        sized: the host's class.
        mode: who installs it.
        engine: what it will run.
        own: the fleet's copies of repositories.
        reboot: whether the fleet lets a run restart its hosts.
        lab: the host is a container, whose kernel is the machine's.
        mirror: the fleet's mirror, where it has packages.

    Raises:
        FleetError: no release fits the engine.
    """
    row = catalog.drivers.classes[sized.family.name]
    if not row.releases:
        return None
    chosen = release(catalog, row, engine)
    vendor, role, managed = chosen.vendor, ROLES[chosen.vendor], mode == "managed"
    switches = sized.count in row.fabric_manager
    packages = dict(chosen.packages)
    if switches and chosen.fabric_manager:
        packages |= chosen.fabric_manager.packages
    packages |= chosen.imex if row.imex else {}
    others = row.fabric_packages if switches else []
    origins = tuple(apt_repositories.of(catalog, name, sized.machine, own) for name in chosen.repositories)
    found = [each.served_by(mirror) for each in origins]
    holds = [*catalog.drivers.holds[vendor].packages, *catalog.drivers.kernel.packages]
    pins = _preferences(found, packages, in_mirror=mirror is not None)
    blacklist = _unattended(holds)
    variables: dict[str, Any] = {
        "driver_packages_managed": managed,
        "apt_repository_tools": list(apt_repositories.TOOLS),
        "driver_packages_repositories": [each.variables for each in found] if managed else [],
        "driver_packages_kernel_modules": chosen.kernel_modules,
        "driver_packages_names": [*(f"{name}={packages[name]}" for name in sorted(packages)), *others],
        "driver_packages_preferences": pins,
        "driver_packages_unattended": blacklist,
        "driver_packages_holds": holds,
        "host_reboot_allowed": reboot,
        f"{role}_version": chosen.version,
        f"{role}_managed": managed,
    }
    if vendor == "nvidia":
        variables["nvidia_driver_fabric_manager"] = switches
    items: list[Item] = [
        file_item(role, UNATTENDED, text_sha256(blacklist)),
        {"role": role, "kind": "holds", "name": "held packages", "patterns": holds},
    ]
    facts: dict[str, Any] = {"driver_below": row.driver_below}
    if switches:
        facts["fabric_manager"] = True
    if managed:
        items.append(file_item(role, PREFERENCES, text_sha256(pins)))
        items += [{"role": role, "kind": "package", "name": n, "version": packages[n]} for n in sorted(packages)]
        items += [{"role": role, "kind": "package", "name": name} for name in others]
        facts |= {"driver_role": role, "driver_version": chosen.version}
        facts |= {"rocm_version": chosen.rocm} if chosen.rocm else {}
    items += _nvidia_items(managed, switches, chosen) if vendor == "nvidia" else _amd_items(lab)
    return HostDriver(role, variables, tuple(items), facts, origins if managed else ())


def of_host(plan: Plan, catalog: Catalog, host: HostPlan, mirror: MirroredSystem | None = None) -> HostDriver | None:
    """The driver of a host of a fleet; None for one that has none.

    Args:
        plan: the fleet.
        catalog: the recipes.
        host: the host.
        mirror: as :func:`for_host` takes it.

    Raises:
        FleetError: the fleet names a repository or a key that is not there, or no release fits the engine.
    """
    deployment = host.deployment
    if deployment is None:
        return None
    return for_host(
        catalog,
        catalog.host_class(deployment.host_class),
        mode_of(plan, host),
        deployment.engine,
        apt_repositories.copies(plan),
        reboot=plan.access.reboot,
        lab=host.cloud == "lab",
        mirror=mirror,
    )


def _nvidia_items(managed: bool, switches: bool, chosen: DriverRelease) -> list[Item]:
    role = ROLES["nvidia"]
    units = ["nvidia-persistenced.service"] if managed else []
    found: list[Item] = [{"role": role, "kind": "unit", "name": name, "active": True} for name in units]
    if managed:
        found.insert(0, file_item(role, PERSISTENCE, role_file_sha256(role, "persistence.conf")))
    if switches and chosen.fabric_manager:
        unit = chosen.fabric_manager.unit
        found.append({"role": role, "kind": "unit", "name": unit, "active": True, "enabled": True})
    return found


def _amd_items(lab: bool) -> list[Item]:
    role = ROLES["amd"]
    found: list[Item] = [
        {"role": role, "kind": "user", "name": "vllm", "groups": ["render", "video"]},
        file_item(role, NUMA, role_file_sha256(role, "sysctl.conf")),
    ]
    if not lab:
        found.append(
            {"role": role, "kind": "sysctl", "name": "kernel.numa_balancing", "value": "0", "may_be_missing": True}
        )
    return found


def _preferences(found: Iterable[Repository], packages: Mapping[str, str], *, in_mirror: bool) -> str:
    """Pins for apt: just these versions whatever else is on offer, and the vendor before the distribution."""
    stanzas = [f"# {_MADE}", *apt_repositories.pins(found, in_mirror=in_mirror)]
    # Above 1000, so that apt goes back to an older version, too.
    stanzas += [f"Package: {name}\nPin: version {packages[name]}\nPin-Priority: 1001" for name in sorted(packages)]
    return "\n\n".join(stanzas) + "\n"


def _unattended(holds: Sequence[str]) -> str:
    """The packages that unattended-upgrades leaves alone, as the regular expressions that it takes."""
    lines = [f'    "^{pattern.replace("*", ".*")}$";' for pattern in holds]
    return "\n".join([f"// {_MADE}", "Unattended-Upgrade::Package-Blacklist {", *lines, "};", ""])
