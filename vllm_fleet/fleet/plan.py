"""A fleet's To-Be: ``fleet.yml`` with the recipes, as hosts and what each of them runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_fleet.base import paths, yaml_document
from vllm_fleet.base.errors import FleetError, InvariantError, raise_all
from vllm_fleet.catalogue import rental
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.catalogue.catalogue import load as load_catalog
from vllm_fleet.fleet import (
    accounts,
    disk_speed,
    open_networks,
    plain_api,
    plain_secrets,
    private_networks,
    region_workers,
    repository_faults,
    reserved_names,
    resource_names,
    served_names,
    service_addresses,
    service_ports,
    ssh_routes,
    tags,
    virtual_address,
    weights_disk,
)
from vllm_fleet.fleet.host_plan import GATEWAY_POOL, HostPlan
from vllm_fleet.fleet.mirror_faults import mirror_errors
from vllm_fleet.fleet.model_faults import model_errors
from vllm_fleet.resolve import image_digest
from vllm_fleet.resolve.resolve import Question, resolve
from vllm_fleet.schema.cloud import LabPlacement
from vllm_fleet.schema.fleet import Access, Fleet, Gateway, Pool, StaticHost

#: Every release of the catalogue reads it (recipes/engines/names).
_RESPONSES_STORE = "VLLM_ENABLE_RESPONSES_API_STORE"
_USERS = {"lab": "deploy", "static": "root"}


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
    document: yaml_document.Document
    spec: Fleet

    def host(self, name: str) -> HostPlan:
        """The host of that name.

        Raises:
            FleetError: unknown host.
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
            hint: what to do if it does not exist.

        Raises:
            FleetError: it does not exist, or cannot be read.
        """
        full = self.artifact_path(value)
        if fault := paths.path_fault(full):
            raise self.document.error_about(("artifacts", *key.split(".", 1)), fault.error(hint))
        return full

    def artifact_path(self, value: str) -> Path:
        """The same path, which need not exist."""
        path = paths.expand_user(value.replace("{cache}", str(paths.cache_dir())))
        return path if path.is_absolute() else self.directory / path


def load(directory: Path, catalog: Catalog | None = None) -> Plan:
    """Reads a fleet's folder and resolves every pool.

    Raises:
        FleetError: it carries every error of the file.
    """
    document = yaml_document.read_with_errors(directory / "fleet.yml")
    # Alone: other errors may repeat the values of keys.
    raise_all(plain_secrets.secret_errors(document))
    parsed = yaml_document.parse_valid_part(
        document, Fleet, lambda data, wrong: _fill(data, wrong, directory.name), "docs/fleets.md"
    )
    spec = parsed.record
    if spec is None:
        raise_all(parsed.errors)
        raise InvariantError("a fleet.yml without errors gives no record")
    recipes = catalog or load_catalog()
    errors: list[FleetError] = []
    if spec.fleet != directory.name:
        file = directory / "fleet.yml"
        message = f"is {spec.fleet!r}, but the name of the folder is {directory.name!r}"
        hint = (
            f"{paths.display(file.parent)}/fleet.yml is a link: make it a file of its own"
            if file.is_symlink()
            else "rename one of them"
        )
        errors.append(document.error(("fleet",), message, hint))
    hosts: list[HostPlan] = []
    for name, pool in spec.pools.items():
        try:
            hosts.extend(_serving_hosts(name, pool, spec, document, recipes))
        except FleetError as fault:
            errors.append(fault)
    has_gateways = True
    try:
        hosts.extend(_gateway_hosts(spec, document, recipes))
    except FleetError as fault:
        errors.extend(_own_errors(fault, errors, spec, document))
        has_gateways = False
    errors.extend(_miscounted(spec, document))
    errors.extend(image_digest.image_errors(spec.artifacts.images, recipes, document))
    errors.extend(model_errors(spec.artifacts.models, recipes, document))
    errors.extend(repository_faults.repository_errors(spec.artifacts.repositories, recipes, document))
    if parsed.errors:
        # What parts of the file must agree on is not asked while one of them is wrong.
        found = [part for error in errors for part in (error, *error.others)]
        raise_all([*parsed.errors, *(error for error in found if not parsed.wrong.concern_key(error.key or ""))])
    errors.extend(mirror_errors(spec.mirror, _host_names(spec), recipes, document))
    errors.extend(region_workers.worker_errors(hosts, spec, document))
    errors.extend(_duplicates(hosts, document))
    errors.extend(reserved_names.reserved_errors(hosts, spec, document))
    errors.extend(service_addresses.address_errors(hosts, document))
    errors.extend(service_ports.port_errors(hosts, spec, document))
    errors.extend(served_names.name_errors(hosts, spec, document))
    errors.extend(plain_api.plain_api_errors(hosts, spec, document))
    if has_gateways:
        errors.extend(virtual_address.virtual_address_errors(hosts, spec, document))
    errors.extend(_unreachable(hosts, spec, document))
    errors.extend(private_networks.network_errors(hosts, spec.access, document))
    errors.extend(accounts.account_errors(hosts, spec, document))
    errors.extend(tags.tag_errors(hosts, spec.tags, document))
    errors.extend(resource_names.name_errors(spec.fleet, hosts, document))
    errors.extend(ssh_routes.apart(hosts, spec.access, document))
    if has_gateways:
        errors.extend(ssh_routes.unreachable(hosts, spec.access, document))
    errors.extend(ssh_routes.missing_keys(hosts, spec.access, document))
    errors.extend(ssh_routes.missing_files(directory, spec.access, document))
    raise_all(errors)
    return Plan(spec.fleet, directory, tuple(hosts), spec.access, spec.gateway, document, spec)


def _own_errors(
    fault: FleetError, of_pools: Sequence[FleetError], spec: Fleet, document: yaml_document.Document
) -> Iterator[FleetError]:
    """The errors of the gateways; what they take over from the placement of the first pool is told there, once."""
    known = {error.message for of_pool in of_pools for error in (of_pool, *of_pool.others)}
    name, pool = next(iter(spec.pools.items()))
    own = spec.gateway.placement
    for error in [fault, *fault.others]:
        error.others = []
        section, path = (parts := (error.key or "").split("."))[:2], parts[2:]
        if section != ["gateway", "placement"] or (path and path[0] in own):
            yield error
        elif error.message in known:
            continue
        elif spec.gateway.cloud in (None, pool.cloud) and (path or not own):
            at = (int(part) if part.isdecimal() else part for part in path)
            yield document.error(("pools", name, "placement", *at), error.message, error.hint, error.code)
        else:
            yield error


def _fill(data: dict[str, Any], wrong: yaml_document.Places, name: str) -> None:
    """Puts in what a wrong fleet.yml lacks, so that the rest of it can be checked: its name, and numbers of hosts."""
    data.setdefault("fleet", name)
    pools = data.get("pools")
    for pool_name, pool in pools.items() if isinstance(pools, dict) else ():
        if isinstance(pool, dict) and ("pools", pool_name, "hosts") in wrong.all:
            pool.setdefault("hosts", 0)


def question(name: str, pool: Pool, spec: Fleet, document: yaml_document.Document) -> Question:
    """The request of a pool to the recipes.

    Raises:
        FleetError: neither the pool nor the defaults name a model.
    """
    model = pool.model or spec.defaults.model
    if model is None:
        raise document.error(("pools", name), "has no model, and 'defaults' has none", "add 'model'")
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
    name: str, pool: Pool, spec: Fleet, document: yaml_document.Document, catalog: Catalog
) -> Iterator[HostPlan]:
    pool_question = question(name, pool, spec, document)
    errors: list[FleetError] = []
    deployment, rented = None, None
    try:
        deployment = resolve(catalog, pool_question)
    except FleetError as fault:
        errors += [_at_pool(name, pool, document, error) for error in (fault, *fault.others)]
    if pool.cloud == "lab" and pool.hosts:
        try:
            yaml_document.parse(document, LabPlacement, ("pools", name, "placement"), pool.placement)
        except FleetError as fault:
            errors += [fault, *fault.others]
    if rental.is_rented(pool.cloud):
        try:
            rented = rental.rent_pool(catalog, name, pool, document)
            if deployment:
                weights_disk.check(rented, deployment.model, deployment.fit.weights_gib, document, name)
            errors += disk_speed.check(rented, ("pools", name, "placement"), document)
        except FleetError as fault:
            errors += [_at_pool(name, pool, document, error) for error in (fault, *fault.others)]
    raise_all(errors)
    user = spec.access.ssh_user or (rented.table.user if rented else _USERS[pool.cloud])
    names = served_names.names_of(pool, pool_question.model)
    if deployment and spec.gateway.responses_store:
        deployment = replace(deployment, env={**deployment.env, _RESPONSES_STORE: "1"})
    for ordinal, host_name, static in _members(name, pool.hosts, pool.static):
        yield HostPlan(
            name=host_name,
            names=names,
            restarted=str(spec.rollout.restarted or ""),
            kind="serving",
            pool=name,
            cloud=pool.cloud,
            placement=pool.placement,
            host_class=pool.host_class,
            ordinal=ordinal,
            user=(static.user if static else None) or user,
            static=static,
            deployment=deployment,
            rented=rented,
        )


def _at_pool(name: str, pool: Pool, document: yaml_document.Document, fault: FleetError) -> FleetError:
    """An error about a pool with the line of the key that it is about."""
    key = fault.key or ""
    group, _, rest = key.partition(".")
    at: tuple[str, ...] = ("pools", name, key) if key else ("pools", name)
    if group in ("args", "env") and pool.overrides and fault.file in (None, document.file):
        at = ("pools", name, "overrides", group, *rest.split("."))
    elif fault.file is not None:
        return fault
    return document.error(at, fault.message, fault.hint, fault.code)


def _miscounted(spec: Fleet, document: yaml_document.Document) -> Iterator[FleetError]:
    """Numbers of hosts that are not those of the list beside them."""
    pools = [(("pools", name), pool.hosts, pool.static) for name, pool in spec.pools.items()]
    for section, members, static in (*pools, (("gateway",), spec.gateway.hosts, spec.gateway.static)):
        if static and members is not None and members != len(static) and members != list(static):
            listed = f"{'.'.join(section)}.static lists {len(static)}"
            given = f"names {len(members)} hosts" if isinstance(members, list) else f"is {members}"
            yield document.error((*section, "hosts"), f"{given}, but {listed}", "remove 'hosts': the list counts")


def _host_names(spec: Fleet) -> list[str]:
    pools = [(name, pool.hosts, pool.static) for name, pool in spec.pools.items()]
    members = [*pools, (spec.gateway.name, spec.gateway.hosts, spec.gateway.static)]
    return [host for member in members for _, host, _ in _members(*member)]


def _gateway_hosts(spec: Fleet, document: yaml_document.Document, catalog: Catalog) -> Iterator[HostPlan]:
    first_pool = next(iter(spec.pools.values()))
    gateway = spec.gateway
    cloud = gateway.cloud or ("static" if gateway.static else first_pool.cloud)
    if cloud != "static" and gateway.static:
        raise document.error(
            ("gateway", "cloud"), f"is {cloud!r}, but gateway.static lists hosts that exist", "remove one of the two"
        )
    beside = first_pool.placement if cloud == first_pool.cloud else {}
    placement = {key: value for key, value in beside.items() if key != "first"}
    rented = None
    if cloud == "lab" and gateway.hosts:
        yaml_document.parse(document, LabPlacement, ("gateway", "placement"), {**placement, **gateway.placement})
    if rental.is_rented(cloud) and gateway.hosts:
        rented = rental.rent_gateways(catalog, cloud, placement, gateway.placement, document)
        raise_all(
            [
                *weights_disk.gateway_errors(gateway.placement, document),
                *disk_speed.check(rented, ("gateway", "placement"), document),
            ]
        )
    user = spec.access.ssh_user or (catalog.clouds[cloud].user if rental.is_rented(cloud) else _USERS[cloud])
    for ordinal, name, static in _members(gateway.name, gateway.hosts, gateway.static):
        yield HostPlan(
            name=name,
            kind="gateway",
            pool=GATEWAY_POOL,
            cloud=cloud,
            placement={**placement, **gateway.placement},
            host_class=None,
            ordinal=ordinal,
            user=(static.user if static else None) or user,
            static=static,
            rented=rented,
        )


def _unreachable(hosts: list[HostPlan], spec: Fleet, document: yaml_document.Document) -> Iterator[FleetError]:
    """Rented hosts whose SSH is open to no network, or to the whole internet."""
    if not any(host.rented for host in hosts):
        return
    if not spec.access.ssh_from:
        yield document.error(
            ("access", "ssh_from"), "is empty: no network may reach the rented hosts", "give the controller's network"
        )
    for index, whole in open_networks.too_wide(spec.access.ssh_from):
        yield document.error(
            ("access", "ssh_from", index), f"opens SSH to the internet ({whole})", "give the controller's network"
        )


def _members(
    pool: str, hosts: int | list[str] | None, static: Mapping[str, StaticHost]
) -> Iterator[tuple[int, str, StaticHost | None]]:
    """Number, name and address of each member of a pool.

    A pool of names keeps the number that a name ends with, so that a pool can go from a number of hosts to names.
    """
    if static:
        for ordinal, (name, host) in enumerate(static.items()):
            yield ordinal, name, host
        return
    names = hosts if isinstance(hosts, list) else [f"{pool}-{ordinal}" for ordinal in range(hosts or 0)]
    numbered = {name: int(name[len(pool) + 1 :]) for name in names if _is_numbered(name, pool)}
    taken = frozenset(numbered.values())
    free = (number for number in itertools.count() if number not in taken)
    for name in names:
        yield numbered[name] if name in numbered else next(free), name, None


def _is_numbered(name: str, pool: str) -> bool:
    return re.fullmatch(rf"{re.escape(pool)}-(0|[1-9][0-9]{{0,4}})", name) is not None


def _duplicates(hosts: list[HostPlan], document: yaml_document.Document) -> Iterator[FleetError]:
    """A host name or a static address of two hosts."""
    names: dict[str, HostPlan] = {}
    addresses: dict[tuple[str, int], HostPlan] = {}
    for host in hosts:
        if other := names.get(host.name):
            yield document.error(
                host.section, f"the host {host.name!r} is in the pool {other.pool!r} too", "rename one"
            )
        names[host.name] = host
        if host.static:
            address = (host.static.address, host.static.port)
            if other := addresses.get(address):
                yield document.error(
                    host.section,
                    f"{host.name} and {other.name} both have the address {host.static.address}",
                    "correct one of them",
                )
            addresses[address] = host
