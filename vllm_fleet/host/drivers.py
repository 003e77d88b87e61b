"""Host class -> driver: variables of the roles, items of the manifest, and facts that the host must have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_fleet.base.digests import text_sha256
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.versions import version_key
from vllm_fleet.catalogue.catalogue import Catalog, SizedClass
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.host import apt_repositories
from vllm_fleet.host.apt_repositories import MirroredSystem, Repository, choose_repository
from vllm_fleet.host.manifest import Manifest
from vllm_fleet.host.manifest_items import Item, file_item, holds_item, package_item, sysctl_item, unit_item, user_item
from vllm_fleet.host.role_files import role_file_sha256
from vllm_fleet.schema.driver import ClassDriver, DriverMode, DriverRelease, SystemPackages
from vllm_fleet.schema.recipe import Engine

#: A distribution's package, whose version does not matter.
ANY_VERSION = "*"
ROLES = {"nvidia": "nvidia_driver", "amd": "amd_driver"}
PREFERENCES = "/etc/apt/preferences.d/vllm-fleet-driver"
UNATTENDED = "/etc/apt/apt.conf.d/60vllm-fleet-driver"
PERSISTENCE = "/etc/systemd/system/nvidia-persistenced.service.d/vllm-fleet.conf"
DEVICES = "vllm-gpu-devices.service"
NVLINK = "/etc/modules-load.d/vllm-fleet-nvlink.conf"
NUMA = "/etc/sysctl.d/61-vllm-fleet-amd.conf"
_MADE = "Made by vllm-fleet; another run replaces what is changed here."


@dataclass(frozen=True)
class HostDriver:
    """The driver of one host.

    Attributes:
        role: the role that owns it.
        variables: variables of that role and of the roles that it uses.
        items: the items of the manifest.
        facts: the facts that the host must have, besides those of its class.
        repositories: where its packages come from; empty if none is installed.
        pins: what apt's preferences say of its packages and of those that they depend on.
    """

    role: str
    variables: Mapping[str, Any]
    items: tuple[Item, ...]
    facts: Mapping[str, Any]
    repositories: tuple[Repository, ...] = ()
    pins: tuple[str, ...] = ()

    def packages(self, system: str) -> tuple[str, ...]:
        """The packages that a host of a system gets, in the form NAME=VERSION; none for an unknown system."""
        return tuple(self.variables["driver_packages_names"].get(system, ())) if self.repositories else ()

    def extend(self, manifest: Manifest) -> Manifest:
        """The manifest with the items and facts of this driver, after the items of host_baseline."""
        place = next(at for at, item in enumerate(manifest.items) if item["role"] != "host_baseline")
        items = (*manifest.items[:place], *self.items, *manifest.items[place:])
        return replace(manifest, items=items, facts={**manifest.facts, **self.facts})


def default_mode(cloud: str) -> DriverMode:
    """``verified`` for rented hosts, whose image has a driver; ``managed`` for your own hosts and the lab."""
    return "managed" if cloud in ("static", "lab") else "verified"


def driver_mode(plan: Plan, host: HostPlan) -> DriverMode:
    """Whether this project installs the driver of a host or only verifies it."""
    return plan.spec.pools[host.pool].driver or default_mode(host.cloud)


def choose_release(catalog: Catalog, row: ClassDriver, engine: Engine | None) -> DriverRelease:
    """The first release of a class that has the ROCm that an engine requires.

    Raises:
        FleetError: no release has it.
    """
    floor = engine.wheel.rocm_min if engine and engine.wheel else None
    for name in row.releases:
        candidate = catalog.drivers.releases[name]
        if not floor or not candidate.rocm or version_key(candidate.rocm) >= version_key(floor):
            return candidate
    raise FleetError(
        f"no driver of recipes/drivers.yml has ROCm {floor}, which the engine requires",
        "add a release there",
        key="engine",
        code=ErrorCode.REFUSED,
    )


@dataclass(frozen=True)
class DriverChoice:
    """What the driver of a host depends on besides its class.

    Attributes:
        mode: whether this project installs it or only verifies it.
        engine: the engine that the host runs from a wheel; None for an image, which brings its ROCm.
        copies: the fleet's copies of repositories.
        reboot: whether a run may restart the host.
        lab: the host is a container, with the kernel of the machine.
        mirror: the fleet's mirror; None if it has no packages.
        nvswitches: how many NVSwitches the host reports; None if it has not been asked yet.
    """

    mode: DriverMode
    engine: Engine | None = None
    copies: apt_repositories.Copies = field(default_factory=dict)
    reboot: bool = False
    lab: bool = False
    mirror: MirroredSystem | None = None
    nvswitches: int | None = None


def choose_driver(catalog: Catalog, sized: SizedClass, choice: DriverChoice) -> HostDriver | None:
    """The driver of a host; None for a class without one.

    Args:
        catalog: the recipes.
        sized: the host's class.
        choice: what it depends on besides the class.

    Raises:
        FleetError: no release fits the engine.
    """
    row = catalog.drivers.classes[sized.family.name]
    if not row.releases:
        return None
    chosen = choose_release(catalog, row, choice.engine)
    vendor, role, managed = chosen.vendor, ROLES[chosen.vendor], choice.mode == "managed"
    # Eight PCIe cards are of the same class as a board with switches; only the host knows.
    switches = sized.count in row.fabric_manager and choice.nvswitches != 0
    packages = {tuple(entry.systems): _class_packages(entry, row, switches=switches) for entry in chosen.packages}
    origins = tuple(choose_repository(catalog, name, sized.machine, choice.copies) for name in chosen.repositories)
    repositories = [origin.served_by(choice.mirror) for origin in origins]
    holds = [*catalog.drivers.holds[vendor].packages, *catalog.drivers.kernel.packages]
    preferences = _preferences(repositories, chosen, in_mirror=choice.mirror is not None)
    blacklist = _unattended(holds)
    variables: dict[str, Any] = {
        "driver_packages_managed": managed,
        "apt_repository_tools": list(apt_repositories.TOOLS),
        "driver_packages_repositories": [repository.variables for repository in repositories] if managed else [],
        "driver_packages_kernel_modules": [*chosen.kernel_modules, *(row.kernel_modules if switches else [])],
        "driver_packages_names": {
            system: [name if version == ANY_VERSION else f"{name}={version}" for name, version in sorted(named.items())]
            for systems, named in packages.items()
            for system in systems
        },
        "driver_packages_preferences": preferences,
        "driver_packages_unattended": blacklist,
        "driver_packages_holds": holds,
        "host_reboot_allowed": choice.reboot,
        f"{role}_version": chosen.version,
        f"{role}_managed": managed,
    }
    if vendor == "nvidia":
        variables["nvidia_driver_fabric_manager"] = switches
        variables["nvidia_driver_subnet_manager"] = switches and row.subnet_manager
    items: list[Item] = [
        file_item(role, UNATTENDED, text_sha256(blacklist)),
        holds_item(role, holds),
    ]
    facts: dict[str, Any] = {"driver_below": row.driver_below}
    if switches:
        facts["fabric_manager"] = True
    if managed:
        items.append(file_item(role, PREFERENCES, text_sha256(preferences)))
        items += _package_items(role, packages)
        facts |= {"driver_role": role, "driver_version": chosen.version}
        facts |= {"rocm_version": chosen.rocm} if chosen.rocm else {}
        facts |= {"kernel_below": chosen.kernel_below} if chosen.kernel_below else {}
    if vendor == "nvidia":
        items += _nvidia_items(managed, chosen.fabric_manager_unit if switches else None)
        items += _device_items(subnet_manager=switches and row.subnet_manager)
    else:
        items += _amd_items(choice.lab)
    pins = tuple(release_pins(chosen))
    return HostDriver(role, variables, tuple(items), facts, origins if managed else (), pins)


def host_driver(
    plan: Plan,
    catalog: Catalog,
    host: HostPlan,
    mirror: MirroredSystem | None = None,
    facts: Mapping[str, Any] | None = None,
) -> HostDriver | None:
    """The driver of a host of a fleet; None for a class without one.

    Args:
        plan: the fleet.
        catalog: the recipes.
        host: the host.
        mirror: the fleet's mirror; None if it has no packages.
        facts: what the host's last probe reported; None before the first one.

    Raises:
        FleetError: the fleet names a repository or a key file that does not exist, or no release fits the engine.
    """
    deployment = host.deployment
    if deployment is None:
        return None
    choice = DriverChoice(
        mode=driver_mode(plan, host),
        # An image has a ROCm of its own.
        engine=deployment.engine if deployment.install == "wheel" else None,
        copies=apt_repositories.fleet_copies(plan),
        reboot=plan.access.reboot,
        lab=host.cloud == "lab",
        mirror=mirror,
        nvswitches=(facts or {}).get("nvswitches"),
    )
    return choose_driver(catalog, catalog.host_class(deployment.host_class), choice)


def _nvidia_items(managed: bool, fabric_manager_unit: str | None) -> list[Item]:
    role = ROLES["nvidia"]
    units = ["nvidia-persistenced.service"] if managed else []
    items: list[Item] = [unit_item(role, name, active=True) for name in units]
    if managed:
        items.insert(0, file_item(role, PERSISTENCE, role_file_sha256(role, "persistence.conf")))
    if fabric_manager_unit:
        items.append(unit_item(role, fabric_manager_unit, active=True, enabled=True))
    return items


def _device_items(*, subnet_manager: bool) -> list[Item]:
    """The unit that loads the modules before an instance starts, and the modules of the switches of B200."""
    role = ROLES["nvidia"]
    items: list[Item] = [
        file_item(role, f"/etc/systemd/system/{DEVICES}", role_file_sha256(role, DEVICES)),
        unit_item(role, DEVICES, active=True, enabled=True),
    ]
    if subnet_manager:
        items.append(file_item(role, NVLINK, role_file_sha256(role, "nvlink-modules.conf")))
    return items


def _amd_items(lab: bool) -> list[Item]:
    role = ROLES["amd"]
    items: list[Item] = [
        user_item(role, "vllm", groups=["render", "video"]),
        file_item(role, NUMA, role_file_sha256(role, "sysctl.conf")),
    ]
    if not lab:
        items.append(sysctl_item(role, "kernel.numa_balancing", "0", may_be_missing=True))
    return items


def _class_packages(entry: SystemPackages, row: ClassDriver, *, switches: bool) -> dict[str, str]:
    """The packages that a host of a class gets on some systems: name -> version."""
    return {
        **entry.packages,
        **(entry.fabric_manager if switches else {}),
        **(entry.subnet_manager if switches and row.subnet_manager else {}),
        **(entry.imex if row.imex else {}),
    }


def _package_items(role: str, packages: Mapping[tuple[str, ...], Mapping[str, str]]) -> Iterable[Item]:
    """The packages of each system; the probe reads only those of the system that the host has."""
    for systems, named in packages.items():
        for name in sorted(named):
            version = named[name]
            yield package_item(role, name, None if version == ANY_VERSION else version, systems=systems)


def _preferences(repositories: Iterable[Repository], chosen: DriverRelease, *, in_mirror: bool) -> str:
    """Pins for apt: exactly these versions, also of what they depend on, and the vendor before the distribution."""
    stanzas = [f"# {_MADE}", *apt_repositories.apt_pins(repositories, in_mirror=in_mirror)]
    return "\n\n".join([*stanzas, *release_pins(chosen)]) + "\n"


def release_pins(chosen: DriverRelease) -> list[str]:
    """Pins for apt of all packages of a release at their versions, on every system."""
    # Above 1000, so that apt also installs an older version.
    priority = "Pin-Priority: 1001"
    versions = {name: version for entry in chosen.packages for name, version in entry.all_packages.items()}
    pins = [
        f"Package: {name}\nPin: version {version}\n{priority}"
        for name, version in sorted(versions.items())
        if version != ANY_VERSION
    ]
    if chosen.dependencies:
        names = " ".join(chosen.dependencies.names)
        pins.append(f"Package: {names}\nPin: version {chosen.dependencies.version}\n{priority}")
    return pins


def _unattended(holds: Sequence[str]) -> str:
    """The config of unattended-upgrades that excludes packages, as regular expressions."""
    lines = [f'    "^{pattern.replace("*", ".*")}$";' for pattern in holds]
    return "\n".join([f"// {_MADE}", "Unattended-Upgrade::Package-Blacklist {", *lines, "};", ""])
