"""Errors of ``recipes/drivers.yml``: contradictions in the file and with the host classes."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.versions import version_key
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.host import drivers as host_drivers
from vllm_fleet.resolve.engine_choice import builds_for, supports
from vllm_fleet.schema.driver import ClassDriver, DriverRelease
from vllm_fleet.schema.recipe import HostClass

#: NVIDIA's default from Hopper on is the open modules; Blackwell has no others.
_OPEN_FROM = 90


def driver_errors(catalog: Catalog) -> Iterator[FleetError]:
    """Every disagreement, each with its place in the file."""
    drivers, document = catalog.drivers, catalog.documents["drivers"]
    for name in sorted(set(catalog.classes) - set(drivers.classes)):
        yield document.error(("classes",), f"has no entry for the class {name!r}", "give it releases or a reason")
    for name, release in drivers.releases.items():
        for index, repository in enumerate(release.repositories):
            if repository not in drivers.repositories:
                at = ("releases", name, "repositories", index)
                yield document.error(at, f"there is no repository {repository!r}", "correct the name")
        if not any(name in row.releases for row in drivers.classes.values()):
            yield document.error(("releases", name), "is the driver of no class", "remove it")
        for message, hint in _systems(catalog, release):
            yield document.error(("releases", name, "packages"), message, hint)
    yield from _toolkit(catalog)
    for name, row in drivers.classes.items():
        family = catalog.classes.get(name)
        if family is None:
            yield document.error(("classes", name), f"there is no host class {name!r}", "correct the name")
            continue
        for message, hint in (*_sizes(family, row), *_releases(catalog, family, row)):
            yield document.error(("classes", name), message, hint)
        for message, hint in _engines(catalog, family, row):
            yield document.error(("classes", name, "releases"), message, hint)


def _engines(catalog: Catalog, family: HostClass, row: ClassDriver) -> Iterator[tuple[str, str]]:
    """A class has a driver for each engine that it may run from a wheel; else ``site.yml`` refuses a recipe."""
    if not row.releases or not set(row.releases) <= set(catalog.drivers.releases):
        return
    # All sizes of a class run the same engines.
    sized = catalog.host_class(f"{family.name}-{family.counts[0]}")
    for engine in catalog.engines.values():
        entries = [supports(model, sized, engine) for model in catalog.models.values()]
        if not builds_for(engine, sized) or not any(entry and entry.status != "unsupported" for entry in entries):
            continue
        try:
            host_drivers.choose_release(catalog, row, engine)
        except FleetError as fault:
            yield f"{engine.id}: {fault.message}", fault.hint


def _systems(catalog: Catalog, release: DriverRelease) -> Iterator[tuple[str, str]]:
    """Each system has its packages in every repository of the release, and a name has one version in all of them."""
    repositories = [
        catalog.drivers.repositories[name] for name in release.repositories if name in catalog.drivers.repositories
    ]
    for entry in release.packages:
        for system in entry.systems:
            if any(system not in row.systems and "any" not in row.systems for row in repositories):
                yield f"one of its repositories has nothing for {system}", "add it to 'systems' there"
    # All pins are in one file.
    versions: dict[str, str] = {}
    for entry in release.packages:
        for name, version in entry.all_packages.items():
            if versions.setdefault(name, version) != version:
                yield f"{name} is at {versions[name]} and at {version}", "use one version"


def _toolkit(catalog: Catalog) -> Iterator[FleetError]:
    """The container toolkit comes from a repository that has it for every NVIDIA class."""
    name, at = catalog.drivers.container_toolkit.repository, ("container_toolkit", "repository")
    repository, document = catalog.drivers.repositories.get(name), catalog.documents["drivers"]
    if repository is None:
        yield document.error(at, f"there is no repository {name!r}", "correct the name")
        return
    machines = {sized.machine for sized in catalog.sized_classes() if sized.family.vendor == "nvidia"}
    for machine in sorted(machines - set(repository.machines)):
        yield document.error(at, f"{name} has nothing for {machine}", "add it to 'machines'")


def _sizes(family: HostClass, row: ClassDriver) -> Iterator[tuple[str, str]]:
    if (family.vendor == "cpu") != (not row.releases):
        yield "a class has 'releases' if it has GPUs, and only then", "add 'releases', or remove them"
    if row.fabric_manager and family.interconnect != "nvswitch":
        yield f"its GPUs are joined by {family.interconnect}: there is no NVSwitch", "remove fabric_manager"
    wrong = [size for size in row.fabric_manager if size not in family.counts or size == 1]
    if wrong:
        yield f"has no size {wrong[0]} with more than one GPU", "correct fabric_manager"


def _releases(catalog: Catalog, family: HostClass, row: ClassDriver) -> Iterator[tuple[str, str]]:
    for name in row.releases:
        release = catalog.drivers.releases.get(name)
        if release is None:
            yield f"there is no release {name!r}", "correct the name"
            continue
        if release.vendor != family.vendor:
            yield f"{name} is a driver of {release.vendor}", "name one of the class's vendor"
            continue
        yield from _bounds(family, row, release)
        for entry in release.packages:
            on = ", ".join(entry.systems)
            if row.fabric_manager and not entry.fabric_manager:
                yield f"{name} has no fabric manager on {on}", "add it to the release"
            if row.subnet_manager and not entry.subnet_manager:
                yield f"{name} has no subnet manager on {on}", "add it to the release"
            if row.imex and not entry.imex:
                yield f"{name} has no IMEX on {on}", "add it to the release"
        machine = family.facts.machine or "x86_64"
        for repository in release.repositories:
            known = catalog.drivers.repositories.get(repository)
            if known and machine not in known.machines:
                yield f"{repository} has nothing for {machine}", "add it to 'machines'"
        if family.arch.startswith("sm_") and int(family.arch[3:]) >= _OPEN_FROM and not release.open_modules:
            yield f"{family.arch} needs open modules, which {name} does not have", "name another release"


def _bounds(family: HostClass, row: ClassDriver, release: DriverRelease) -> Iterator[tuple[str, str]]:
    version = version_key(release.version)
    floor = family.facts.driver_min
    if floor and version < version_key(floor):
        yield f"{release.version} is below the class's own floor {floor}", "raise the release"
    if row.driver_below and version >= version_key(row.driver_below):
        yield f"{release.version} is not below the ceiling {row.driver_below}", "raise the ceiling"
    for kind, has, floor_of_class in (
        ("CUDA", release.cuda, family.facts.cuda_min),
        ("ROCm", release.rocm, family.facts.rocm_min),
    ):
        if has and floor_of_class and version_key(has) < version_key(floor_of_class):
            yield f"{release.version} brings {kind} {has}, the class asks for {floor_of_class}", "raise the release"
