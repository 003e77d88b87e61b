"""What is wrong with the copies of vendors' repositories that a fleet names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.yaml_document import Document
from vllm_fleet.catalogue.catalogue import Catalog


def repository_errors(copies: Iterable[str], catalog: Catalog, document: Document) -> Iterator[FleetError]:
    """Copies that a fleet names of unknown repositories.

    Args:
        copies: the names under ``artifacts.repositories``.
        catalog: the recipes.
        document: the fleet's file.
    """
    known = catalog.drivers.repositories
    for name in copies:
        if name not in known:
            at = ("artifacts", "repositories", name)
            yield document.error(
                at, "is not a repository of recipes/drivers.yml", f"known repositories: {', '.join(known)}"
            )
