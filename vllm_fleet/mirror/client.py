"""The fleet's mirror as its hosts use it: role variables and manifest items."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.addresses import host_port
from vllm_fleet.base.digests import text_sha256
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.fleet.stack import Location
from vllm_fleet.host import model_sources
from vllm_fleet.host.apt_repositories import MirroredSystem
from vllm_fleet.host.host_paths import model_directory
from vllm_fleet.host.manifest import Manifest, Port
from vllm_fleet.host.manifest_items import Item, file_item
from vllm_fleet.host.model_files import Download, ModelFiles, model_files
from vllm_fleet.host.proxy import HostProxy, host_proxy
from vllm_fleet.host.role_files import role_file_sha256
from vllm_fleet.mirror import apt_lists, host_as_mirror
from vllm_fleet.mirror.apt_packages import mirrored_distribution
from vllm_fleet.mirror.parts import model_need
from vllm_fleet.mirror.store import Store, default_directory
from vllm_fleet.schema.distribution import Distribution

APT_CONFIG = "/etc/apt/apt.conf.d/60-vllm-fleet"
APT_SOURCES = "/etc/apt/vllm-fleet.sources"
PROXY_DROP_IN = "vllm-fleet-proxy.conf"


@dataclass(frozen=True)
class Mirrored:
    """What the hosts of a fleet download from and through; ``url`` is empty for a fleet without a mirror."""

    url: str
    host: str | None
    apt_config: str
    apt_sources: str
    #: ``host:port`` of its image registry; None for a mirror without images.
    registry: str | None = None
    #: The system whose packages it holds; None for a mirror without packages.
    packages: MirroredSystem | None = None
    #: Variables of the role mirror on its host; empty where the mirror is not a host of the fleet.
    served: Mapping[str, Any] = field(default_factory=dict)
    #: The ports of a mirror that is a host of the fleet.
    ports: tuple[Port, ...] = ()
    #: The proxy that the hosts download through, but from the mirror.
    proxy: HostProxy = field(default_factory=HostProxy)

    def variables(self, host: HostPlan) -> dict[str, Any]:
        """The variables that the mirror adds to those of a host's roles."""
        variables: dict[str, Any] = {
            "host_baseline_apt_config": self.apt_config,
            "host_baseline_apt_sources": self.apt_sources,
            "fleet_proxy_environment": dict(self.proxy.environment),
        }
        if host.name == self.host:
            variables |= self.served
        if host.deployment:
            variables["harmony_encodings_mirror_url"] = self.url and f"{self.url}/encodings"
            variables["model_store_proxy"] = self.proxy.drop_in
        if host.deployment and host.deployment.install == "docker":
            variables["container_engine_proxy"] = self.proxy.drop_in
        if host.deployment and host.deployment.install == "wheel":
            variables["vllm_engine_index_url"] = self.url and f"{self.url}/wheels/simple"
        return variables

    def manifest(self, host: HostPlan, manifest: Manifest) -> Manifest:
        """The manifest with the items that the mirror adds."""
        items: list[Item] = [file_item("host_baseline", APT_CONFIG, text_sha256(self.apt_config))]
        if self.apt_sources:
            items.append(file_item("host_baseline", APT_SOURCES, text_sha256(self.apt_sources)))
        if self.url and host.deployment:
            items += self.fetch_items()
        if host.deployment and host.deployment.install == "docker":
            items += self._docker_items()
        if host.name == self.host:
            items += host_as_mirror.manifest_items(self.served)
        ports = self.ports if host.name == self.host else ()
        return replace(manifest, items=(*manifest.items, *items), ports=(*manifest.ports, *ports))

    def fetch_items(self) -> list[Item]:
        """The manifest items of a host that downloads models itself, from the mirror or from elsewhere."""
        role, unit, program = "model_store", "vllm-fetch@.service", "vllm-fetch"
        return [
            file_item(role, f"/etc/systemd/system/{unit}", role_file_sha256(role, unit)),
            file_item(role, f"/etc/systemd/system/{unit}.d/{PROXY_DROP_IN}", text_sha256(self.proxy.drop_in)),
            file_item(role, f"/usr/local/libexec/{program}", role_file_sha256(role, program), "0755"),
        ]

    def _docker_items(self) -> Iterator[Item]:
        role, digest = "container_engine", text_sha256(self.proxy.drop_in)
        yield file_item(role, f"/etc/systemd/system/docker.service.d/{PROXY_DROP_IN}", digest)
        # The role writes it when the daemon has started with the drop-in.
        yield file_item(role, "/etc/docker/vllm-fleet-proxy.loaded", text_sha256(f"{digest}\n"))


def describe_mirror(plan: Plan, catalog: Catalog, where: Mapping[str, Location]) -> Mirrored:
    """The mirror of a plan, with its URL, registry, packages and role variables.

    Args:
        plan: the fleet.
        catalog: the recipes.
        where: the location of each host.

    Raises:
        FleetError: a host of the fleet is its mirror, and the mirror of this machine lacks some of its parts.
    """
    spec = plan.spec.mirror
    url = spec.url or (f"http://{host_port(where[spec.host].service_address, spec.port)}" if spec.host else "")
    at = re.match(r"https?://(\[[^\]]*\]|[^:/]+)", url)
    proxy = host_proxy(plan.spec.proxy, _hosts_inside(plan, where, at[1] if at else None))
    if not spec.is_there:
        return Mirrored("", None, apt_lists.host_apt_config(None, proxy.apt_config), "", proxy=proxy)
    registry = f"{at[1]}:{spec.registry_port}" if at and spec.registry_port else None
    chosen = mirrored_distribution(plan, catalog)
    local = apt_sources(chosen, f"file:{host_as_mirror.DIRECTORY}") if chosen else ""
    serving = (
        host_as_mirror.role_variables(plan, catalog, _listen(where[spec.host], spec.port), local, registry)
        if spec.host
        else {}
    )
    numbers = (spec.port, *((spec.registry_port,) if spec.registry_port else ())) if spec.host else ()
    ports = tuple(Port(port=number, address="") for number in numbers)
    apt_config = apt_lists.host_apt_config(APT_SOURCES if chosen else None, proxy.apt_config)
    mirrored = Mirrored(url, spec.host, apt_config, "", registry, served=serving, ports=ports, proxy=proxy)
    if chosen is None:
        return mirrored
    system = MirroredSystem(chosen[0], f"{url}/{apt_lists.distribution_folder(chosen[0])}")
    return replace(mirrored, apt_sources=apt_sources(chosen, url), packages=system)


def _listen(host: Location, port: int) -> str:
    """Where nginx listens on the mirror: for IPv4, and for IPv6 too if the others reach the host by it."""
    return f"[::]:{port} ipv6only=off" if ":" in host.service_address else str(port)


def _hosts_inside(plan: Plan, where: Mapping[str, Location], mirror_host: str | None) -> Iterator[str]:
    """The hosts that no proxy is asked for: the gateways, the mirror, and the fleet's own registry."""
    for host in plan.hosts:
        if host.kind == "gateway":
            yield from dict.fromkeys((where[host.name].address, *where[host.name].connect_from))
    if mirror_host:
        yield mirror_host.strip("[]")
    if plan.spec.mirror.registry:
        yield plan.spec.mirror.registry.rpartition(":")[0].strip("[]")


def apt_sources(chosen: tuple[str, Distribution], base: str) -> str:
    """The apt sources for the archives in a mirror at a URL or in a folder (``file:``)."""
    name, record = chosen
    bases = [f"{base}/{apt_lists.archive_folder(name, number)}" for number in range(len(record.sources))]
    return apt_lists.sources_text(record, bases, check_valid_until=False)


def find_model_files(plan: Plan, catalog: Catalog, name: str) -> ModelFiles:
    """The files of a model with their digests: from its source in fleet.yml, else from the mirror of this machine.

    Raises:
        FleetError: neither has the files, or a list of digests is missing or wrong.
    """
    if not model_sources.is_fetched_by_controller(model_sources.model_source(plan, name)):
        return model_sources.host_model(plan, catalog, name)
    need = model_need(name, catalog, plan)
    folder = need.folder or Store(default_directory()).place(need.path)
    if not paths.is_there(folder / "model.json"):
        raise plan.document.error(
            ("artifacts", "models"),
            f"has no copy of {name!r}, and the mirror of this machine lacks its revision {need.revision}",
            model_sources.CHOICES.format(fleet=plan.fleet, model=name),
        )
    return model_sources.confirm_digests(model_files(folder), model_sources.known_digests(plan, catalog, name))


def model_faults(plan: Plan, catalog: Catalog) -> Iterator[tuple[FleetError, bool]]:
    """What keeps ``site.yml`` from a model: each error, and whether the fleet's files are wrong.

    The others are about what this machine does not have yet, such as a download. A mirror says itself what it lacks.
    """
    for name in model_sources.served_models(plan):
        source = model_sources.model_source(plan, name)
        if source == model_sources.DEFAULT and plan.spec.mirror.is_there:
            continue
        try:
            find_model_files(plan, catalog, name)
        except FleetError as fault:
            yield fault, not model_sources.is_fetched_by_controller(source)


def model_variables(name: str, files: ModelFiles, url: str) -> dict[str, Any]:
    """A model as the role model_store expects it.

    Args:
        name: the model.
        files: its files.
        url: the mirror's URL; empty where the files are copied from this machine.
    """
    if files.adopted:
        return {
            "name": name,
            "revision": files.revision,
            "directory": files.adopted.directory,
            "source": "",
            "url": "",
            "request": "",
            "files": [{"name": file, "sha256": digest} for file, digest in sorted(files.sha256.items())],
            "adopted": files.adopted.variables,
        }
    if files.download:
        return _downloaded_model(name, files, files.download)
    record: dict[str, Any] = {
        "name": name,
        "revision": files.revision,
        "directory": model_directory(name, files.revision),
        "source": str(files.directory),
        "url": url and f"{url}/models/{name.replace('/', '--')}/{files.revision}",
        "files": [{"name": file, "sha256": digest} for file, digest in sorted(files.sha256.items())],
    }
    return {**record, "request": _request_name(record)}


def _downloaded_model(name: str, files: ModelFiles, download: Download) -> dict[str, Any]:
    """A model that the host downloads itself, from outside of the fleet's network."""
    record: dict[str, Any] = {
        "name": name,
        "revision": files.revision,
        "directory": model_directory(name, files.revision),
        "source": "",
        "url": download.url,
        "files": [
            {"name": file, "sha256": digest, **({"size": files.sizes[file]} if files.sizes.get(file) else {})}
            for file, digest in sorted(files.sha256.items())
        ],
        "outside": True,
        "ca": download.ca,
        "token_source": str(download.token_file or ""),
    }
    return {**record, "request": _request_name(record)}


def _request_name(record: Mapping[str, Any]) -> str:
    text = json.dumps([record["url"], record["directory"], record["files"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
