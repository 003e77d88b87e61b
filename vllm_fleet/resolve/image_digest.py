"""Which image an engine is, by digest: that of the recipes, or that of the fleet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.yaml_document import Document
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.schema.recipe import Engine, Machine

#: Engine -> digest, or the digest for each kind of machine, as ``artifacts.images`` spells it.
Digests = Mapping[str, str | Mapping[Machine, str]]


def pinned(engine: Engine, digests: Digests, machine: Machine | None) -> Engine:
    """The engine with the digest that the fleet gives its image; as it is where the fleet gives none.

    Args:
        engine: the engine of the recipes.
        digests: the fleet's own.
        machine: the kind of the host's processors.
    """
    given = digests.get(engine.id)
    digest = given if isinstance(given, str) or given is None else given.get(machine) if machine else None
    if engine.docker is None or digest is None:
        return engine
    return engine.model_copy(update={"docker": engine.docker.model_copy(update={"digest": digest})})


def directory_id(engine: Engine) -> str:
    """What names all that an engine as an image consists of: its id and a digest of the image and its options."""
    image = engine.docker.model_dump_json() if engine.docker else ""
    return f"{engine.id}-{hashlib.sha256(image.encode()).hexdigest()[:12]}"


def image_errors(digests: Digests, catalog: Catalog, document: Document) -> Iterator[FleetError]:
    """Entries of ``artifacts.images`` that pin nothing."""
    for name in digests:
        at = ("artifacts", "images", name)
        engine = catalog.engines.get(name)
        if engine is None:
            yield document.error(at, f"there is no engine {name!r}", f"known engines: {', '.join(catalog.engines)}")
        elif engine.docker is None:
            yield document.error(at, f"{name} does not come as an image", "remove the line")


def refusal(engine: Engine, registry: str | None) -> tuple[str, str] | None:
    """Why a fleet cannot install the engine's image, and what to do; None where it can.

    Args:
        engine: the engine, with the fleet's digest.
        registry: the fleet's own registry.
    """
    image = engine.docker
    if image is None:
        return f"{engine.id} does not come as an image", "choose a wheel"
    named = f"{image.image}:{image.tag}"
    if image.digest is None:
        where = named if image.published else f"HOST:PORT/{named}"
        return (
            f"{engine.id} has no digest yet: the tag {named} can change to another image",
            f"'docker buildx imagetools inspect {where}' shows the digest; give it in fleet.yml as "
            f"artifacts.images: {{{engine.id}: sha256:...}}",
        )
    if not image.published and registry is None:
        return (
            f"no registry has {named}: its users build it",
            "push it to your own registry and set mirror.registry in fleet.yml",
        )
    return None
