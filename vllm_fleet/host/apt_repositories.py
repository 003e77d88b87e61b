"""Vendors' apt repositories: where the packages lie that no distribution has, and who signs them.

A host takes them from the vendor, from a copy that the fleet names, or from the fleet's mirror.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.schema.driver import AptSource, RepositoryMirror, SigningKey
from vllm_fleet.schema.recipe import Machine

#: A repository for hosts of any system.
ANY_SYSTEM = "any"
#: What reads the keys and the sources of repositories, and a small image lacks.
TOOLS = ("gpg", "python3-debian")
#: A repository's key in its folder of a mirror.
KEY_FILE = "key.asc"
#: Repository -> the fleet's own copy of it, with the file of its key.
Copies = Mapping[str, tuple[RepositoryMirror, Path]]
NO_COPIES: Copies = MappingProxyType({})


@dataclass(frozen=True)
class MirroredSystem:
    """A mirror that has the packages of one system.

    Attributes:
        system: ID-VERSION_ID of its ``/etc/os-release``.
        url: under which they lie there.
    """

    system: str
    url: str


@dataclass(frozen=True)
class Repository:
    """One repository as the hosts with one kind of processor take it.

    Attributes:
        name: its name in ``recipes/drivers.yml``.
        systems: ID-VERSION_ID of a system, or ``any`` -> where its packages lie.
        key: who signs it: a file on this machine, or an address with its fingerprint.
        pin: what apt calls it whatever its address, such as ``o=AMD``; empty where it is known by its address alone.
    """

    name: str
    systems: Mapping[str, AptSource]
    key: Path | SigningKey
    pin: str = ""

    def source(self, system: str) -> AptSource | None:
        """Where the packages of a system lie; None: it has none for it."""
        return self.systems.get(system) or self.systems.get(ANY_SYSTEM)

    @property
    def key_name(self) -> str:
        """A key is named after itself: two repositories of one key have one file, and another key is another file."""
        if isinstance(self.key, SigningKey):
            return self.key.fingerprint
        return hashlib.sha256(self.key.read_bytes()).hexdigest()[:16]

    @property
    def variables(self) -> dict[str, Any]:
        """The repository as the role apt_repository takes it."""
        systems = {system: source.model_dump() for system, source in self.systems.items()}
        key = self.key.model_dump(exclude_none=True) if isinstance(self.key, SigningKey) else {"file": str(self.key)}
        return {"name": self.name, "systems": systems, "key": {"name": self.key_name, **key}}

    @property
    def is_on_hosts(self) -> bool:
        """Whether it is a folder of the hosts themselves, which no mirror has to carry."""
        return all(source.uri.startswith("file:") for source in self.systems.values())

    def served_by(self, mirror: MirroredSystem | None) -> Repository:
        """The same in a mirror; None and a system that it has nothing for leave it where it is."""
        source = self.source(mirror.system) if mirror else None
        if mirror is None or source is None or self.is_on_hosts:
            return self
        at = f"{mirror.url}/{self.name}"
        key = self.key
        if isinstance(key, SigningKey):
            # Without https: what comes is compared with the fingerprint.
            key = key.model_copy(update={"url": f"{at}/{KEY_FILE}"})
        found = AptSource(uri=at, suites=source.suites, components=source.components, check_valid_until=False)
        return replace(self, systems={mirror.system: found}, key=key)


def copies(plan: Plan) -> Copies:
    """The copies that a fleet names.

    Raises:
        FleetError: the key of one is not there.
    """
    hint = "give the public key that signs the copy, relative to the fleet's folder"
    return {
        name: (copy, plan.artifact(f"repositories.{name}", copy.signing_key_file, hint))
        for name, copy in plan.spec.artifacts.repositories.items()
    }


def of(catalog: Catalog, name: str, machine: Machine, own: Copies) -> Repository:
    """A repository for one kind of processor: the fleet's own copy, else the vendor's.

    Args:
        catalog: the recipes.
        name: its name there.
        machine: the kind of processor, as kernels call it.
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
    }
    return Repository(name, systems, recipe.key, recipe.pin)


def pins(repositories: Iterable[Repository], *, in_mirror: bool) -> list[str]:
    """Pins of apt that prefer the vendors to the distribution, which may have packages of the same names.

    Args:
        repositories: theirs.
        in_mirror: they have one address with the distribution, so that only their own names tell them apart.
    """
    if in_mirror:
        known = sorted({f"release {each.pin}" for each in repositories if each.pin})
    else:
        uris = [source.uri for each in repositories for source in each.systems.values()]
        found = (re.match(r"https?://([^/:]+)", uri) for uri in uris)
        known = sorted({f'origin "{match[1]}"' for match in found if match})
    return [f"Package: *\nPin: {each}\nPin-Priority: 600" for each in known]
