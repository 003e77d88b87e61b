"""A host of the fleet as its mirror: role variables and manifest items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_fleet.base.digests import text_sha256
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.host.manifest import STAMP
from vllm_fleet.host.manifest_items import Item, file_item, package_item, store_item, unit_item
from vllm_fleet.host.role_files import role_file_sha256
from vllm_fleet.mirror import apt_lists, image_store, nginx_config, parts, wheels
from vllm_fleet.mirror.store import Store, brief, default_directory

DIRECTORY = "/srv/vllm-fleet-mirror"
CONFIG = "/etc/nginx/conf.d/vllm-fleet-mirror.conf"
ACCESS_LOG = "/var/log/nginx/vllm-fleet-mirror.log"
REGISTRY_CONFIG = "/etc/vllm-fleet-registry.json"
APT_SOURCES = "/etc/vllm-fleet-mirror.sources"
_ROLE = "mirror"


def role_variables(
    plan: Plan, catalog: Catalog, listen: str, apt_sources: str, registry_address: str | None
) -> dict[str, Any]:
    """The variables of the role mirror.

    Args:
        plan: the fleet.
        catalog: the recipes.
        listen: where the mirror listens, as nginx has it.
        apt_sources: apt sources of the archives in the mirror's own folder; empty for a mirror without packages.
        registry_address: ``host:port`` of its image registry; None for a mirror without images.

    Raises:
        FleetError: the mirror of this machine lacks parts that the fleet needs.
    """
    store = Store(default_directory())
    index = store.read()
    wanted = parts.list_parts(plan, catalog)
    lacking = [part.key for part in wanted if part.key not in index.parts]
    if lacking:
        raise plan.document.error(
            ("mirror",),
            f"the mirror of this machine lacks {brief(lacking)}",
            f"run 'vllm-fleet mirror --fleet {plan.fleet}' first",
        )
    files = {name: entry.sha256 for part in wanted for name, entry in index.entries(part.key).items()}
    pages = [
        *wheels.index_pages(files),
        *(f"{part.path}/model.json" for part in wanted if isinstance(part, parts.Model)),
    ]
    for part in wanted:
        if isinstance(part, parts.Image):
            pages += [
                name
                for name, _ in image_store.repository_links(part.name, part.digest, part.platform, store.read_bytes)
            ]
    images = (
        image_store.registry_config(f"{DIRECTORY}/{image_store.FOLDER}", registry_address) if registry_address else ""
    )
    return {
        "mirror_source": str(store.directory),
        "mirror_files": [{"name": name, "sha256": digest} for name, digest in sorted(files.items())],
        "mirror_pages": sorted(set(pages)),
        "mirror_nginx_config": nginx_config.server_block(DIRECTORY, listen, ACCESS_LOG),
        "mirror_apt_config": apt_lists.host_apt_config(APT_SOURCES if apt_sources else None),
        "mirror_apt_sources": apt_sources,
        "mirror_registry_config": images,
    }


def manifest_items(variables: Mapping[str, Any]) -> list[Item]:
    """The manifest items of the host.

    Args:
        variables: the variables of the role mirror.
    """
    files = {file["name"]: file["sha256"] for file in variables["mirror_files"]}
    items: list[Item] = [
        package_item(_ROLE, "nginx-light"),
        store_item(_ROLE, DIRECTORY, STAMP, files),
        file_item(_ROLE, CONFIG, text_sha256(variables["mirror_nginx_config"])),
        file_item(
            _ROLE,
            "/etc/systemd/system/nginx.service.d/vllm-fleet.conf",
            role_file_sha256(_ROLE, "nginx.service.d.conf"),
        ),
        unit_item(_ROLE, "nginx.service", active=True, enabled=True),
    ]
    if config := variables["mirror_registry_config"]:
        drop_in = "docker-registry.service"
        items += [
            package_item(_ROLE, "docker-registry"),
            file_item(_ROLE, REGISTRY_CONFIG, text_sha256(config)),
            file_item(
                _ROLE, f"/etc/systemd/system/{drop_in}.d/vllm-fleet.conf", role_file_sha256(_ROLE, f"{drop_in}.d.conf")
            ),
            unit_item(_ROLE, drop_in, active=True, enabled=True),
        ]
    return items
