"""Vendors' apt repositories: where packages are that no distribution has, and the keys that sign them.

A host uses the vendor's repository, a copy that the fleet names, or the fleet's mirror.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_fleet.base import paths, text_files
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.schema.driver import AptSource, RepositoryMirror, SigningKey, SystemSource
from vllm_fleet.schema.recipe import Machine

#: A repository for hosts of any system.
ANY_SYSTEM = "any"
#: Packages that read the keys and the sources of repositories; small images lack them.
TOOLS = ("gpg", "python3-debian")
#: File name of a repository's key in a mirror.
KEY_FILE = "key.asc"
#: Repository -> the fleet's own copy of it, with the file of its key.
Copies = Mapping[str, tuple[RepositoryMirror, Path]]


@dataclass(frozen=True)
class MirroredSystem:
    """A mirror that has the packages of one system.

    Attributes:
        system: ID-VERSION_ID of its ``/etc/os-release``.
        url: base address of the packages there.
    """

    system: str
    url: str


@dataclass(frozen=True)
class Repository:
    """One repository for hosts with one kind of processor.

    Attributes:
        name: its name in ``recipes/drivers.yml``.
        systems: ID-VERSION_ID of a system, or ``any`` -> where its packages are.
        key: the key that signs it: a file on this machine, or an address with a fingerprint. A system may have another.
        pin: a field of its release file that identifies it at any address, such as ``o=AMD``; empty: only the
            address identifies it.
    """

    name: str
    systems: Mapping[str, AptSource]
    key: Path | SigningKey
    pin: str = ""

    def source(self, system: str) -> AptSource | None:
        """Where the packages of a system are; None: the repository has none for it."""
        return self.systems.get(system) or self.systems.get(ANY_SYSTEM)

    def system_key(self, system: str) -> Path | SigningKey:
        """The key that signs the packages of a system."""
        source = self.source(system)
        return (source.key if isinstance(source, SystemSource) else None) or self.key

    @property
    def key_name(self) -> str:
        """A name made from the key: repositories with the same key share a file, and another key gets another file."""
        return _key_name(self.key)

    @property
    def variables(self) -> dict[str, Any]:
        """The repository as a value for the role apt_repository."""
        systems = {}
        for system, source in self.systems.items():
            systems[system] = source.model_dump(include=set(AptSource.model_fields))
            if (key := self.system_key(system)) != self.key:
                systems[system]["key"] = _key_variables(key)
        return {"name": self.name, "systems": systems, "key": _key_variables(self.key)}

    @property
    def is_on_hosts(self) -> bool:
        """Whether it is a folder on the hosts, which no mirror needs to have."""
        return all(source.uri.startswith("file:") for source in self.systems.values())

    def served_by(self, mirror: MirroredSystem | None) -> Repository:
        """The same repository in a mirror; unchanged without a mirror or if it has nothing for the mirror's system."""
        source = self.source(mirror.system) if mirror else None
        if mirror is None or source is None or self.is_on_hosts:
            return self
        at = f"{mirror.url}/{self.name}"
        key = self.system_key(mirror.system)
        if isinstance(key, SigningKey):
            # https is not needed: the key is compared with the fingerprint.
            key = key.model_copy(update={"url": f"{at}/{KEY_FILE}"})
        mirrored = AptSource(uri=at, suites=source.suites, components=source.components, check_valid_until=False)
        return replace(self, systems={mirror.system: mirrored}, key=key)


def _key_name(key: Path | SigningKey) -> str:
    return key.fingerprint if isinstance(key, SigningKey) else hashlib.sha256(key.read_bytes()).hexdigest()[:16]


def _key_variables(key: Path | SigningKey) -> dict[str, Any]:
    values = key.model_dump(exclude_none=True) if isinstance(key, SigningKey) else {"file": str(key)}
    return {"name": _key_name(key), **values}


def fleet_copies(plan: Plan) -> Copies:
    """The copies of repositories that a fleet names.

    Raises:
        FleetError: a key file is missing or cannot be read.
    """
    return {name: (copy, _key_file(plan, name, copy)) for name, copy in plan.spec.artifacts.repositories.items()}


def _key_file(plan: Plan, name: str, copy: RepositoryMirror) -> Path:
    hint = "give the public key that signs the copy, relative to the fleet's folder"
    file = plan.artifact(f"repositories.{name}", copy.signing_key_file, hint)
    try:
        text_files.read_bytes(file)
    except FleetError as fault:
        at = ("artifacts", "repositories", name, "signing_key_file")
        raise plan.document.error_about(at, fault) from None
    return file


def find_wrong_keys(plan: Plan) -> Iterator[FleetError]:
    """What is wrong with the key files that are there."""
    for name, copy in plan.spec.artifacts.repositories.items():
        if paths.is_there(plan.artifact_path(copy.signing_key_file)):
            try:
                _key_file(plan, name, copy)
            except FleetError as fault:
                yield fault


def choose_repository(catalog: Catalog, name: str, machine: Machine, own: Copies) -> Repository:
    """A repository for one kind of processor: the fleet's own copy, else the vendor's.

    Args:
        catalog: the recipes.
        name: the name of the repository there.
        machine: the kind of processor, as the kernel names it.
        own: the fleet's copies.
    """
    recipe = catalog.drivers.repositories[name]
    if name in own:
        copy, key_file = own[name]
        source = AptSource(uri=copy.uri, suites=copy.suites, components=copy.components)
        return Repository(name, {ANY_SYSTEM: source}, key_file, recipe.pin)
    called = recipe.machines[machine]
    systems = {
        system: source.model_copy(update={"uri": source.uri.replace("{machine}", called)})
        for system, source in recipe.systems.items()
        if not source.machines or machine in source.machines
    }
    return Repository(name, systems, recipe.key, recipe.pin)


def apt_pins(repositories: Iterable[Repository], *, in_mirror: bool) -> list[str]:
    """Pins for apt that prefer the vendors to the distribution, which may have packages with the same names.

    Args:
        repositories: the vendors' repositories.
        in_mirror: they have the same address as the distribution, so only their release files identify them.
    """
    if in_mirror:
        conditions = sorted({f"release {repository.pin}" for repository in repositories if repository.pin})
    else:
        uris = [source.uri for repository in repositories for source in repository.systems.values()]
        origins = (re.match(r"https?://([^/:]+)", uri) for uri in uris)
        conditions = sorted({f'origin "{match[1]}"' for match in origins if match})
    return [f"Package: *\nPin: {condition}\nPin-Priority: 600" for condition in conditions]
