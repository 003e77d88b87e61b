"""What is wrong with the models that a fleet names a source of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.yaml_document import Document
from vllm_fleet.catalogue.catalogue import Catalog


def model_errors(names: Iterable[str], catalog: Catalog, document: Document) -> Iterator[FleetError]:
    """Sources of models that no recipe has.

    Args:
        names: the keys of ``artifacts.models``.
        catalog: the recipes.
        document: the fleet's file.
    """
    for name in names:
        try:
            catalog.model(name)
        except FleetError as fault:
            yield document.error(("artifacts", "models", name), fault.message, fault.hint)
