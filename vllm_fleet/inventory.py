"""Plan JOIN stack: everything that each host gets, as flat role-prefixed variables and as a manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vllm_fleet.base import paths, yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import engine_locks
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.catalogue.catalogue import load as load_catalog
from vllm_fleet.fleet import host_facts, ssh_routes
from vllm_fleet.fleet.host_plan import READINESS_OFFSET, HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.fleet.plan import load as load_plan
from vllm_fleet.fleet.stack import Location, locations
from vllm_fleet.host import container, container_toolkit, drivers, engine_install, haproxy, instance_files, start_cache
from vllm_fleet.host.manifest import UNITS, Item, Manifest, gateway_items, serving_manifest
from vllm_fleet.host.model_files import ModelFiles
from vllm_fleet.host.role_files import unit_digest
from vllm_fleet.mirror import client, parts
from vllm_fleet.resolve.deployment import choose
from vllm_fleet.schema.fleet import ApiKeys

#: The roles that may bring about each kind of host, in their order; those of one host are in its manifest.
ROLES = {
    "serving": (
        *("host_baseline", "nvidia_driver", "amd_driver", "harmony_encodings", "model_store"),
        *("vllm_engine", "container_engine", "vllm_image", "vllm_service"),
    ),
    "gateway": ("host_baseline", "gateway"),
}
#: Roles that others use on a serving host; they own nothing of a manifest.
HELPERS = ("apt_repository", "driver_packages", "host_reboot", "gateway_traffic")
ALL_ROLES = ("mirror", *ROLES["serving"], "gateway")


@dataclass(frozen=True)
class SiteHost:
    """One host, ready for Ansible and for the probe."""

    plan: HostPlan
    location: Location
    variables: Mapping[str, Any]
    manifest: Manifest


@dataclass(frozen=True)
class Site:
    """A whole fleet with its hosts in the order of the plan."""

    plan: Plan
    hosts: tuple[SiteHost, ...]

    @property
    def known_hosts(self) -> str:
        """The SSH host keys of the fleet in the format of ``known_hosts``."""
        lines = []
        for host in self.hosts:
            at = host.location
            name = at.address if at.port == 22 else f"[{at.address}]:{at.port}"
            lines += [f"{name} {key}\n" for key in at.ssh_host_keys]
        return "".join(lines)

    @cached_property
    def known_hosts_file(self) -> Path:
        """Where :attr:`known_hosts` is written for ``ssh``."""
        return paths.run_dir(self.plan.fleet) / "known_hosts"

    @cached_property
    def _gateways(self) -> Mapping[str, SiteHost]:
        return {host.plan.name: host for host in self.hosts if host.plan.kind == "gateway"}

    def door(self, host: SiteHost) -> SiteHost | None:
        """The gateway that a host is reached through; None: straight."""
        return self._gateways[host.location.jump] if host.location.jump else None

    def ssh_arguments(self, host: SiteHost) -> str:
        """What ``ssh`` needs to reach a host, beside address, port and user."""
        door = self.door(host)
        jump = (door.location.user, door.location.address, door.location.port) if door else None
        return ssh_routes.arguments(self.known_hosts_file, jump, self.private_key_file)

    @cached_property
    def control_path_dir(self) -> str:
        """Where ``ssh`` keeps shared connections to hosts behind a gateway.

        Two fleets may give hosts the same private address, and Ansible names a connection by the address.
        """
        return f"~/.ansible/cp/{hashlib.sha256(str(self.plan.directory.resolve()).encode()).hexdigest()[:8]}"

    @cached_property
    def private_key_file(self) -> Path | None:
        """The private key that the fleet names, if it names one."""
        own = self.plan.access.ssh_private_key_file
        return (self.plan.directory / own).resolve() if own else None


def load(directory: Path) -> Site:
    """Reads a fleet's folder: plan, stack, keys and artifacts, and what its hosts have said of themselves.

    Raises:
        FleetError: any of them is missing or does not agree with the others.
    """
    plan = load_plan(directory)
    return build(plan, load_catalog(), host_facts.load(plan.fleet))


def build(plan: Plan, catalog: Catalog, facts: host_facts.Facts | None = None) -> Site:
    """Joins a plan with its stack.

    Args:
        plan: the To-Be.
        catalog: the recipes.
        facts: host -> what it has said of itself, for rules that depend on it.

    Raises:
        FleetError: they do not agree, or a pool's engine cannot be installed yet (``refused``).
    """
    plan = _chosen(engine_install.locked(plan, catalog), facts or {})
    where = locations(plan)
    mirrored = client.of(plan, catalog, where)
    deployed = sorted({_deployed(host) for host in plan.hosts} - {""})
    models = {name: client.files_of(plan, catalog, name) for name in deployed}
    backends = [
        haproxy.Backend(host.name, name, where[host.name].service_address, port, _deployed(host))
        for host in plan.hosts
        for name, port in host.instances
    ]
    gateways = [where[host.name].service_address for host in plan.hosts if host.kind == "gateway"]
    on_gateways = _gateway(plan, backends) if gateways else ({}, ())
    hosts = []
    for host in plan.hosts:
        at = where[host.name]
        if host.kind == "gateway":
            variables, manifest = dict(on_gateways[0]), Manifest(host.name, on_gateways[1], {})
        else:
            said = (facts or {}).get(host.name, {})
            lock = engine_install.lock_of(plan, catalog, host)
            model = models[_deployed(host)]
            variables, manifest = _serving(plan, catalog, host, at, model, gateways, said, lock, mirrored)
            variables["gateway_traffic_gateways"] = [each.name for each in plan.hosts if each.kind == "gateway"]
            own = [each for each in backends if each.host == host.name]
            variables["gateway_traffic_servers"] = [f"{b.host}_{b.instance}={b.address}:{b.port}" for b in own]
            variables["model_store_models"] = [
                client.model_variables(_deployed(host), models[_deployed(host)], mirrored.url)
            ]
        variables |= mirrored.variables(host)
        manifest = mirrored.manifest(host, manifest)
        common = {"fleet_name": plan.fleet, "fleet_pool": host.pool, "fleet_kind": host.kind}
        hosts.append(SiteHost(host, at, {**common, **variables}, manifest))
    return Site(plan, tuple(hosts))


def _chosen(plan: Plan, facts: host_facts.Facts) -> Plan:
    return replace(
        plan,
        hosts=tuple(
            replace(host, deployment=choose(host.deployment, facts[host.name]))
            if host.deployment and host.name in facts
            else host
            for host in plan.hosts
        ),
    )


def _deployed(host: HostPlan) -> str:
    return host.deployment.model if host.deployment else ""


def _serving(
    plan: Plan,
    catalog: Catalog,
    host: HostPlan,
    at: Location,
    model: ModelFiles,
    gateways: list[str],
    facts: Mapping[str, Any],
    lock: engine_locks.Lock | None,
    mirrored: client.Mirrored,
) -> tuple[dict[str, Any], Manifest]:
    deployment = host.deployment
    if deployment is None:
        raise FleetError("a serving host has a deployment", host=host.name)
    if plan.spec.artifacts.encodings is None:
        raise plan.document.error(("artifacts",), "names no folder of encodings", "add 'encodings'")
    source = plan.artifact("encodings", plan.spec.artifacts.encodings)
    wanted = catalog.model(deployment.model).encodings
    encodings = [
        {"name": name, "sha256": catalog.encodings.encodings[name].sha256, "source": str(source / name)}
        for name in wanted
    ]
    arch = catalog.host_class(deployment.host_class).family.arch
    driver = drivers.of_host(plan, catalog, host, mirrored.packages)
    # A driver that is installed from here is known before the host can say it.
    known = driver.facts.get("driver_version") if driver else None
    cache = start_cache.key(deployment, model.revision, arch, known or facts.get("driver"))
    kept = start_cache.directory(cache)
    image = _image(plan, catalog, host, mirrored)
    model_at = instance_files.model_directory(deployment.model, model.revision)
    start = (
        container.start_env(image, deployment, model_at, kept, instance_files.serving_env(deployment, kept))
        if image
        else {"VLLM_FLEET_ENGINE": f"{instance_files.ENGINES}/{deployment.engine_directory_id}"}
    )
    unit = unit_digest(deployment.install)
    instances = [
        instance_files.instance_files(host, name, port, at.service_address, model.revision, unit, kept, start)
        for name, port in host.instances
    ]
    ports = [port for _, port in host.instances]
    firewall = haproxy.firewall_text([*ports, *(port + READINESS_OFFSET for port in ports)], gateways)
    files = {f"{each.name}.yaml": each.config for each in instances}
    files |= {f"{each.name}.env": each.env for each in instances}
    release = instance_files.release_digest(files)
    asked = engine_locks.asked_facts(deployment.engine, lock) if lock else None
    manifest = serving_manifest(host, catalog, encodings, model, instances, files, release, firewall, image, asked)
    manifest = driver.extend(manifest) if driver else manifest
    files["manifest.json"] = manifest.text
    variables: dict[str, Any] = {
        "fleet_host_class": deployment.host_class,
        "harmony_encodings_files": encodings,
        **(container.variables(image) if image else {}),
        **(engine_install.variables(deployment, lock) if lock else {}),
        "vllm_service_unit": UNITS[deployment.install],
        "vllm_service_release": release,
        "vllm_service_files": [{"name": name, "content": text} for name, text in sorted(files.items())],
        "vllm_service_instances": [{"name": each.name, "loaded": each.loaded} for each in instances],
        "vllm_service_firewall_rules": firewall,
        "vllm_service_cache_key": cache,
        "vllm_service_cache_store": str(paths.cache_dir() / "start-caches"),
    }
    return {**(driver.variables if driver else {}), **variables}, manifest


def _image(plan: Plan, catalog: Catalog, host: HostPlan, mirrored: client.Mirrored) -> container.Image | None:
    deployment = host.deployment
    if deployment is None or deployment.install != "docker" or deployment.engine.docker is None:
        return None
    family = catalog.host_class(deployment.host_class).family
    parts.registry_ca(plan)
    at = (plan.spec.mirror, plan.directory, mirrored.registry)
    image = container.image_of(deployment.engine.docker, family.facts.machine, family.vendor, *at)
    return replace(
        image, toolkit=container_toolkit.of_host(plan, catalog, host, mirrored.packages), lab=host.cloud == "lab"
    )


def _gateway(plan: Plan, backends: list[haproxy.Backend]) -> tuple[dict[str, Any], tuple[Item, ...]]:
    """What every gateway gets, the same on each of them: its variables and what must be true on it."""
    config = haproxy.haproxy_config(plan.gateway, backends)
    keys_document = yaml_document.read(plan.directory / plan.gateway.api_keys_file)
    keys = haproxy.api_keys_text(yaml_document.parse(keys_document, ApiKeys).keys)
    tls = plan.gateway.tls
    certificate = (plan.directory / tls.certificate_file).resolve() if tls else None
    if certificate and not certificate.is_file():
        raise plan.document.error(
            ("gateway", "tls", "certificate_file"), f"there is no {paths.display(certificate)}", "correct the path"
        )
    return {
        "gateway_config": config,
        "gateway_api_key_digests": keys,
        "gateway_certificate_file": str(certificate) if certificate else "",
    }, gateway_items(config, keys, certificate)


def explain(site: Site, name: str) -> Mapping[str, Any]:
    """Every key of one host with file, rule and reason."""
    host = site.plan.host(name)
    if host.deployment is None:
        return {"host": name, "kind": host.kind, "pool": host.pool, "keys": {}}
    record = host.deployment.record()
    return {
        "host": name,
        "kind": host.kind,
        "pool": host.pool,
        **{key: record[key] for key in ("host_class", "model", "engine", "profile", "status", "evidence")},
        "keys": record["provenance"],
        "values": json.loads(json.dumps({"args": record["args"], "env": record["env"]})),
    }
