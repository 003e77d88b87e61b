"""Host class -> driver: variables of the roles, items of the manifest, and the facts that the host must have."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_fleet.assets import role_file_sha256
from vllm_fleet.catalog import Catalog, SizedClass
from vllm_fleet.driver_schema import AptSource, ClassDriver, DriverMode, DriverRelease, RepositoryMirror
from vllm_fleet.errors import FleetError
from vllm_fleet.manifest import Item, Manifest, file_item
from vllm_fleet.plan import HostPlan, Plan
from vllm_fleet.render import sha256
from vllm_fleet.schema import Engine
from vllm_fleet.vetoes import version_key

ROLES = {"nvidia": "nvidia_driver", "amd": "amd_driver"}
PREFERENCES = "/etc/apt/preferences.d/vllm-fleet-driver"
UNATTENDED = "/etc/apt/apt.conf.d/60vllm-fleet-driver"
PERSISTENCE = "/etc/systemd/system/nvidia-persistenced.service.d/vllm-fleet.conf"
NUMA = "/etc/sysctl.d/61-vllm-fleet-amd.conf"
#: What reads the keys and the sources of repositories, and a small image lacks.
TOOLS = ("gpg", "python3-debian")
#: A fleet's mirror serves hosts of any system.
ANY_SYSTEM = "any"
_MADE = "Made by vllm-fleet; another run replaces what is changed here."


@dataclass(frozen=True)
class HostDriver:
    """What one host gets.

    Attributes:
        role: the role that owns it.
        variables: of that role and of the ones that it uses.
        items: what must be true.
        facts: what the host's own facts must be, beside those of its class.
    """

    role: str
    variables: Mapping[str, Any]
    items: tuple[Item, ...]
    facts: Mapping[str, Any]

    def extend(self, manifest: Manifest) -> Manifest:
        """The manifest with this driver in it, after the items of the operating system."""
        place = next(at for at, item in enumerate(manifest.items) if item["role"] != "host_baseline")
        items = (*manifest.items[:place], *self.items, *manifest.items[place:])
        return replace(manifest, items=items, facts={**manifest.facts, **self.facts})


def default_mode(cloud: str) -> DriverMode:
    """Rented hosts start from an image that brings a driver; a host of one's own gets it from here."""
    return "managed" if cloud in ("static", "lab") else "verified"


def is_managed(plan: Plan, catalog: Catalog, host: HostPlan) -> bool:
    """Whether a host gets its driver from its roles."""
    if host.deployment is None:
        return False
    family = catalog.host_class(host.deployment.host_class).family
    return bool(catalog.drivers.classes[family.name].releases) and _mode(plan, host) == "managed"


def _mode(plan: Plan, host: HostPlan) -> DriverMode:
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
    mirrors: Mapping[str, tuple[RepositoryMirror, Path]] = {},
    reboot: bool = False,
    lab: bool = False,
) -> HostDriver | None:
    """The driver of a host; None for a class that has none.

    Args:
        catalog: the recipes.
        sized: the host's class.
        mode: who installs it.
        engine: what it will run.
        mirrors: repository -> the fleet's own copy of it with its key file.
        reboot: whether the fleet lets a run restart its hosts.
        lab: the host is a container, whose kernel is the machine's.

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
    sources = [_repository(catalog, name, sized, mirrors.get(name)) for name in chosen.repositories]
    holds = [*catalog.drivers.holds[vendor].packages, *catalog.drivers.kernel.packages]
    pins = _preferences(sources, packages)
    blacklist = _unattended(holds)
    variables: dict[str, Any] = {
        "driver_packages_managed": managed,
        "driver_packages_tools": list(TOOLS),
        "driver_packages_repositories": sources if managed else [],
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
        file_item(role, UNATTENDED, sha256(blacklist)),
        {"role": role, "kind": "holds", "name": "held packages", "patterns": holds},
    ]
    facts: dict[str, Any] = {"driver_below": row.driver_below}
    if switches:
        facts["fabric_manager"] = True
    if managed:
        items.append(file_item(role, PREFERENCES, sha256(pins)))
        items += [{"role": role, "kind": "package", "name": n, "version": packages[n]} for n in sorted(packages)]
        items += [{"role": role, "kind": "package", "name": name} for name in others]
        facts |= {"driver_role": role, "driver_version": chosen.version}
        facts |= {"rocm_version": chosen.rocm} if chosen.rocm else {}
    items += _nvidia_items(managed, switches, chosen) if vendor == "nvidia" else _amd_items(lab)
    return HostDriver(role, variables, tuple(items), facts)


def of_host(plan: Plan, catalog: Catalog, host: HostPlan) -> HostDriver | None:
    """The driver of a host of a fleet; None for one that has none.

    Raises:
        FleetError: the fleet names a repository or a key that is not there, or no release fits the engine.
    """
    deployment = host.deployment
    if deployment is None:
        return None
    mirrors = {
        name: (mirror, plan.artifact(f"repositories.{name}", mirror.signing_key_file))
        for name, mirror in plan.spec.artifacts.repositories.items()
    }
    if unknown := sorted(set(mirrors) - set(catalog.drivers.repositories)):
        known = ", ".join(catalog.drivers.repositories)
        at = ("artifacts", "repositories", unknown[0])
        raise plan.document.error(at, "is no repository of recipes/drivers.yml", f"it knows {known}")
    return for_host(
        catalog,
        catalog.host_class(deployment.host_class),
        _mode(plan, host),
        deployment.engine,
        mirrors,
        reboot=plan.access.reboot,
        lab=host.cloud == "lab",
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


def _repository(
    catalog: Catalog, name: str, sized: SizedClass, mirror: tuple[RepositoryMirror, Path] | None
) -> dict[str, Any]:
    """A repository as the roles take it: one source for each system, and its key."""
    if mirror:
        own, key_file = mirror
        source = AptSource(uri=own.uri, suites=own.suites, components=own.components)
        # A key is named after itself: two repositories of one key have one file, and another key is another file.
        key = {"name": hashlib.sha256(key_file.read_bytes()).hexdigest()[:16], "file": str(key_file)}
        return {"name": name, "systems": {ANY_SYSTEM: source.model_dump()}, "key": key}
    repository = catalog.drivers.repositories[name]
    machine = repository.machines[sized.family.facts.machine or "x86_64"]
    systems = {
        system: {**source.model_dump(), "uri": source.uri.replace("{machine}", machine)}
        for system, source in repository.systems.items()
    }
    key = {"name": repository.key.fingerprint, **repository.key.model_dump(exclude_none=True)}
    return {"name": name, "systems": systems, "key": key}


def _preferences(sources: Sequence[Mapping[str, Any]], packages: Mapping[str, str]) -> str:
    """Pins for apt: just these versions whatever else is on offer, and the vendor before the distribution."""
    uris = [source["uri"] for each in sources for source in each["systems"].values()]
    hosts = sorted({found[1] for found in (re.match(r"https?://([^/:]+)", uri) for uri in uris) if found})
    stanzas = [f"# {_MADE}"]
    stanzas += [f'Package: *\nPin: origin "{host}"\nPin-Priority: 600' for host in hosts]
    # Above 1000, so that apt goes back to an older version, too.
    stanzas += [f"Package: {name}\nPin: version {packages[name]}\nPin-Priority: 1001" for name in sorted(packages)]
    return "\n\n".join(stanzas) + "\n"


def _unattended(holds: Sequence[str]) -> str:
    """The packages that unattended-upgrades leaves alone, as the regular expressions that it takes."""
    lines = [f'    "^{pattern.replace("*", ".*")}$";' for pattern in holds]
    return "\n".join([f"// {_MADE}", "Unattended-Upgrade::Package-Blacklist {", *lines, "};", ""])
