"""Errors in the ``mirror`` of a fleet.yml, found before anything is created."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.yaml_document import Document
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.schema.mirror import Mirror


def mirror_errors(spec: Mirror, hosts: Collection[str], catalog: Catalog, document: Document) -> Iterator[FleetError]:
    """A host that the fleet does not have, and a distribution that is not known.

    Args:
        spec: the fleet's mirror.
        hosts: the names of the fleet's hosts.
        catalog: the recipes.
        document: the fleet's file.
    """
    if spec.host and spec.host not in hosts:
        yield document.error(("mirror", "host"), f"there is no host {spec.host!r}", f"hosts: {', '.join(hosts)}")
    known = catalog.distributions.distributions
    if spec.distribution and spec.distribution not in known:
        yield document.error(
            ("mirror", "distribution"),
            f"there is no distribution {spec.distribution!r}",
            f"known: {', '.join(sorted(known))}",
        )
