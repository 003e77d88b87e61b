"""A fleet's To-Be: ``fleet.yml`` with the recipes, as hosts and what each of them runs."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vllm_fleet import clouds, disks, driver_check, image_choice, networks, paths, reach, yamlfile
from vllm_fleet.catalog import Catalog, raise_all
from vllm_fleet.catalog import load as load_catalog
from vllm_fleet.clouds import Rented
from vllm_fleet.errors import FleetError
from vllm_fleet.fleet_schema import Access, Fleet, Gateway, Pool, StaticHost
from vllm_fleet.mirror.faults import faults as mirror_faults
from vllm_fleet.resolve import Deployment, Question, resolve

Kind = Literal["serving", "gateway"]
#: Port of instance 0; instance n listens on the n-th port after it, its readiness 100 above.
FIRST_PORT = 8000
READINESS_OFFSET = 100
GATEWAY_POOL = "gateway"
_USERS = {"lab": "deploy", "static": "root"}


@dataclass(frozen=True)
class HostPlan:
    """One host of the To-Be.

    ``address`` and ``ssh_host_key`` are known only for static hosts, ``rented`` is there only for rented ones.
    """

    name: str
    kind: Kind
    pool: str
    cloud: str
    placement: Mapping[str, Any]
    host_class: str | None
    ordinal: int
    user: str
    address: str | None = None
    port: int = 22
    ssh_host_key: str | None = None
    deployment: Deployment | None = None
    rented: Rented | None = None

    @property
    def instances(self) -> tuple[tuple[str, int], ...]:
        """Name and port of each vLLM process."""
        count = self.deployment.instances if self.deployment else 0
        return tuple((str(number), FIRST_PORT + number) for number in range(count))


#: What to do about an artifact that is not on the controller.
_MISSING = (
    "'make setup' makes what the lab uses; a model of the hub: set mirror and leave this key out, then run "
    "'vllm-fleet mirror'"
)


@dataclass(frozen=True)
class Plan:
    """A whole fleet, in the order of the file, gateways last."""

    fleet: str
    directory: Path
    hosts: tuple[HostPlan, ...]
    access: Access
    gateway: Gateway
    document: yamlfile.Document
    spec: Fleet

    def host(self, name: str) -> HostPlan:
        """The host of that name.

        Raises:
            FleetError: there is none.
        """
        for host in self.hosts:
            if host.name == name:
                return host
        known = ", ".join(host.name for host in self.hosts)
        raise FleetError(f"the fleet {self.fleet!r} has no host {name!r}", f"it has {known}", self.document.file)

    def artifact(self, key: str, value: str, hint: str = _MISSING) -> Path:
        """A path under ``artifacts``, with ``{cache}`` filled in, relative to the fleet's folder.

        Args:
            key: its key under ``artifacts``.
            value: the path.
            hint: what to do where it is not there.

        Raises:
            FleetError: it is not there.
        """
        path = Path(os.path.expanduser(value.replace("{cache}", str(paths.cache_dir()))))  # noqa: PTH111 - str in
        full = path if path.is_absolute() else self.directory / path
        if not full.exists():
            raise self.document.error(
                ("artifacts", *key.split(".", 1)),
                f"there is no {paths.display(full)}",
                hint,
            )
        return full


def load(directory: Path, catalog: Catalog | None = None) -> Plan:
    """Reads a fleet's folder and resolves every pool.

    Raises:
        FleetError: with every fault of the file.
    """
    document = yamlfile.read(directory / "fleet.yml")
    spec = yamlfile.parse(document, Fleet)
    if spec.fleet != directory.name:
        raise document.error(
            ("fleet",),
            f"is {spec.fleet!r} in the folder of the fleet {directory.name!r}",
            "rename one of them",
        )
    recipes = catalog or load_catalog()
    faults: list[FleetError] = []
    hosts: list[HostPlan] = []
    for name, pool in spec.pools.items():
        try:
            hosts.extend(_serving_hosts(name, pool, spec, document, recipes))
        except FleetError as fault:
            faults.append(fault)
    try:
        hosts.extend(_gateway_hosts(spec, document, recipes))
    except FleetError as fault:
        faults.append(fault)
    faults.extend(image_choice.faults(spec.artifacts.images, recipes, document))
    faults.extend(driver_check.fleet_faults(spec.artifacts.repositories, recipes, document))
    faults.extend(mirror_faults(spec.mirror, [host.name for host in hosts], recipes, document))
    faults.extend(_duplicates(hosts, document))
    faults.extend(_unreachable(hosts, spec, document))
    faults.extend(networks.faults(hosts, spec.access, document))
    faults.extend(reach.apart(hosts, spec.access, document))
    faults.extend(reach.unreachable(hosts, spec.access, document))
    raise_all(faults)
    return Plan(spec.fleet, directory, tuple(hosts), spec.access, spec.gateway, document, spec)


def question(name: str, pool: Pool, spec: Fleet, document: yamlfile.Document) -> Question:
    """What a pool asks of the recipes.

    Raises:
        FleetError: neither the pool nor the defaults name a model.
    """
    model = pool.model or spec.defaults.model
    if model is None:
        raise document.error(("pools", name), "names no model, nor do the defaults", "add 'model'")
    return Question(
        host_class=pool.host_class,
        model=model,
        profile=pool.profile or spec.defaults.profile,
        engine=pool.engine,
        install=pool.install,
        features=tuple(pool.features),
        overrides=pool.overrides,
        overrides_file=document.file,
        images=spec.artifacts.images,
        locks=frozenset(spec.artifacts.locks),
    )


def _serving_hosts(
    name: str, pool: Pool, spec: Fleet, document: yamlfile.Document, catalog: Catalog
) -> Iterator[HostPlan]:
    asked = question(name, pool, spec, document)
    try:
        deployment = resolve(catalog, asked)
    except FleetError as fault:
        if fault.file is None:
            at = ("pools", name, fault.key) if fault.key else ("pools", name)
            raise document.error(at, fault.message, fault.hint, fault.code) from None
        raise
    rented = None
    if clouds.rented(pool.cloud):
        sized = catalog.host_class(pool.host_class)
        rented = clouds.pool(catalog, pool.cloud, sized, pool.placement, document, name)
        disks.check(rented, deployment.model, deployment.fit.weights_gib, document, name)
    user = spec.access.ssh_user or (rented.table.user if rented else _USERS[pool.cloud])
    for ordinal, (host_name, static) in enumerate(_members(name, pool.hosts, pool.static)):
        yield HostPlan(
            name=host_name,
            kind="serving",
            pool=name,
            cloud=pool.cloud,
            placement=pool.placement,
            host_class=pool.host_class,
            ordinal=ordinal,
            user=(static.user if static else None) or user,
            address=static.address if static else None,
            port=static.port if static else 22,
            ssh_host_key=static.ssh_host_key if static else None,
            deployment=deployment,
            rented=rented,
        )


def _gateway_hosts(spec: Fleet, document: yamlfile.Document, catalog: Catalog) -> Iterator[HostPlan]:
    first_pool = next(iter(spec.pools.values()))
    gateway = spec.gateway
    cloud = gateway.cloud or ("static" if gateway.static else first_pool.cloud)
    beside = first_pool.placement if cloud == first_pool.cloud else {}
    placement = {key: value for key, value in beside.items() if key != "first"}
    rented = None
    if clouds.rented(cloud) and gateway.hosts:
        rented = clouds.gateways(catalog, cloud, placement, gateway.placement, document)
    user = spec.access.ssh_user or (catalog.clouds[cloud].user if clouds.rented(cloud) else _USERS[cloud])
    for ordinal, (name, static) in enumerate(_members(gateway.name, gateway.hosts, gateway.static)):
        yield HostPlan(
            name=name,
            kind="gateway",
            pool=GATEWAY_POOL,
            cloud=cloud,
            placement={**placement, **gateway.placement},
            host_class=None,
            ordinal=ordinal,
            user=(static.user if static else None) or user,
            address=static.address if static else None,
            port=static.port if static else 22,
            ssh_host_key=static.ssh_host_key if static else None,
            rented=rented,
        )


def _unreachable(hosts: list[HostPlan], spec: Fleet, document: yamlfile.Document) -> Iterator[FleetError]:
    """Rented hosts that nobody could log in to, or the whole world could try."""
    if not any(host.rented for host in hosts):
        return
    if not spec.access.ssh_from:
        yield document.error(
            ("access", "ssh_from"), "is empty: nobody could reach the rented hosts", "give the controller's network"
        )
    for index, network in enumerate(spec.access.ssh_from):
        if ipaddress.ip_network(network).prefixlen == 0:
            yield document.error(
                ("access", "ssh_from", index), "opens SSH to the whole internet", "give the controller's network"
            )


def _members(pool: str, count: int | None, static: Mapping[str, StaticHost]) -> Iterator[tuple[str, StaticHost | None]]:
    if static:
        yield from static.items()
    else:
        for ordinal in range(count or 0):
            yield f"{pool}-{ordinal}", None


def _duplicates(hosts: list[HostPlan], document: yamlfile.Document) -> Iterator[FleetError]:
    """A host name or a static address that stands for two hosts."""
    names: dict[str, HostPlan] = {}
    addresses: dict[tuple[str, int], HostPlan] = {}
    for host in hosts:
        at = ("gateway",) if host.kind == "gateway" else ("pools", host.pool)
        if other := names.get(host.name):
            yield document.error(at, f"the host {host.name!r} is in the pool {other.pool!r} too", "rename one")
        names[host.name] = host
        if host.address:
            if other := addresses.get((host.address, host.port)):
                yield document.error(
                    at,
                    f"{host.name} and {other.name} both have the address {host.address}",
                    "correct one of them",
                )
            addresses[host.address, host.port] = host
