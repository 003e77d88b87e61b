"""The vocabulary files of a plan's models: where each host gets them from, and what is wrong with the copies."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_fleet.base import paths
from vllm_fleet.base.digests import file_sha256
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.host import model_sources
from vllm_fleet.host.serving_host import EncodingFile
from vllm_fleet.mirror.store import Store, default_directory


def list_vocabularies(plan: Plan, catalog: Catalog, model: str) -> Iterator[EncodingFile]:
    """The vocabulary files of a model, each with its source.

    The order: the folder that fleet.yml names, the mirror of this machine, the official page, from which each host
    downloads. Every source is verified by the digest of the recipes.

    Raises:
        FleetError: fleet.yml names a folder that does not exist.
    """
    given = plan.spec.artifacts.encodings
    folder = plan.artifact("encodings", given) if given else None
    store = Store(default_directory())
    for name in catalog.model(model).encodings:
        entry = catalog.encodings.encodings[name]
        kept = folder / name if folder else store.place(f"encodings/{name}")
        if folder or kept.is_file():
            yield EncodingFile(name, entry.sha256, source=str(kept))
        else:
            yield EncodingFile(name, entry.sha256, url=entry.url)


def find_faults(plan: Plan, catalog: Catalog) -> Iterator[FleetError]:
    """What keeps ``site.yml`` from the copies that fleet.yml names, in the words of the role harmony_encodings."""
    given = plan.spec.artifacts.encodings
    if given is None:
        return
    try:
        files = {
            file for model in model_sources.served_models(plan) for file in list_vocabularies(plan, catalog, model)
        }
    except FleetError as fault:
        yield fault
        return
    if plan.spec.mirror.is_there:
        return
    folder = plan.artifact("encodings", given)
    for file in sorted(files, key=lambda each: each.name):
        copy = folder / file.name
        found = file_sha256(copy) if copy.is_file() else "of no file"
        if found != file.sha256:
            yield plan.document.error(
                ("artifacts", "encodings"),
                f"{paths.display(copy)} has the SHA-256 {found}, not {file.sha256}",
                "remove it and run 'make setup', or remove 'encodings' from fleet.yml: hosts download it then",
            )
