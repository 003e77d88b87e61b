"""Errors in the ``mirror`` of a fleet.yml, found before anything is created."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from urllib.parse import urlsplit

from vllm_fleet.base.addresses import parse_ip
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.yaml_document import Document
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.schema.mirror import Mirror


def mirror_errors(spec: Mirror, hosts: Collection[str], catalog: Catalog, document: Document) -> Iterator[FleetError]:
    """A host that the fleet does not have, an address that only one host has, and an unknown distribution.

    Args:
        spec: the fleet's mirror.
        hosts: the names of the fleet's hosts.
        catalog: the recipes.
        document: the fleet's file.
    """
    if spec.host and spec.host not in hosts:
        yield document.error(("mirror", "host"), f"there is no host {spec.host!r}", f"hosts: {', '.join(hosts)}")
    # A registry is asked by the mirror where that carries images, else by each host.
    asked = {"url": spec.url, "registry": None if spec.registry_port else f"//{spec.registry}"}
    for key, url in asked.items():
        if url and len(hosts) > 1 and _is_loopback(urlsplit(url).hostname or ""):
            yield document.error(
                ("mirror", key),
                f"{urlsplit(url).hostname} is a loopback address: each host would ask itself",
                "give the address at which the hosts reach it",
            )
    known = catalog.distributions.distributions
    if spec.distribution and spec.distribution not in known:
        yield document.error(
            ("mirror", "distribution"),
            f"there is no distribution {spec.distribution!r}",
            f"known: {', '.join(sorted(known))}",
        )


def _is_loopback(host: str) -> bool:
    address = parse_ip(host)
    return address.is_loopback if address else host == "localhost" or host.endswith(".localhost")
