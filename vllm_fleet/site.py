"""Plan JOIN stack: everything that each host gets, as flat role-prefixed variables and as a manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_fleet import gateway, host_facts, paths, render, startcache, yamlfile
from vllm_fleet.artifacts import ModelFiles
from vllm_fleet.assets import unit_digest
from vllm_fleet.catalog import Catalog
from vllm_fleet.catalog import load as load_catalog
from vllm_fleet.deployment import choose
from vllm_fleet.errors import FleetError
from vllm_fleet.fleet_schema import ApiKeys
from vllm_fleet.manifest import Manifest, gateway_manifest, serving_manifest
from vllm_fleet.mirror import client
from vllm_fleet.plan import READINESS_OFFSET, HostPlan, Plan
from vllm_fleet.plan import load as load_plan
from vllm_fleet.stack import Location, locations

#: The roles that bring about each kind of host, in their order.
ROLES = {
    "serving": ("host_baseline", "harmony_encodings", "model_store", "vllm_engine", "vllm_service"),
    "gateway": ("host_baseline", "gateway"),
}
ALL_ROLES = ("mirror", "host_baseline", "harmony_encodings", "model_store", "vllm_engine", "vllm_service", "gateway")


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

    @property
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
    plan = _chosen(plan, facts or {})
    for host in plan.hosts:
        _installable(plan, host)
    where = locations(plan)
    mirrored = client.of(plan, catalog, where)
    deployed = sorted({_deployed(host) for host in plan.hosts} - {""})
    models = {name: client.files_of(plan, catalog, name) for name in deployed}
    backends = [
        gateway.Backend(host.name, name, where[host.name].service_address, port, _deployed(host))
        for host in plan.hosts
        for name, port in host.instances
    ]
    gateways = [where[host.name].service_address for host in plan.hosts if host.kind == "gateway"]
    hosts = []
    for host in plan.hosts:
        at = where[host.name]
        if host.kind == "gateway":
            variables, manifest = _gateway(plan, host, backends)
        else:
            said = (facts or {}).get(host.name, {})
            variables, manifest = _serving(plan, catalog, host, at, models[_deployed(host)], gateways, said)
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


def _installable(plan: Plan, host: HostPlan) -> None:
    deployment = host.deployment
    if deployment is None:
        return
    at = ("pools", host.pool)
    engine = deployment.engine
    if deployment.install == "docker":
        raise plan.document.error(
            at, f"{engine.id} would be installed as an image, which no role does yet", "choose a wheel", "refused"
        )
    if engine.wheel is None or engine.wheel.lock is None:
        raise plan.document.error(
            at,
            f"{engine.id} is not locked yet: its recipe can be shown, its packages cannot be verified",
            "its lock is not made yet; 'vllm-fleet recipe' shows the deployment",
            "refused",
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
) -> tuple[dict[str, Any], Manifest]:
    deployment = host.deployment
    if deployment is None or deployment.engine.wheel is None:
        raise FleetError("a serving host has a deployment with a wheel", host=host.name)
    if plan.spec.artifacts.encodings is None:
        raise plan.document.error(("artifacts",), "names no folder of encodings", "add 'encodings'")
    source = plan.artifact("encodings", plan.spec.artifacts.encodings)
    wanted = catalog.model(deployment.model).encodings
    encodings = [
        {"name": name, "sha256": catalog.encodings.encodings[name].sha256, "source": str(source / name)}
        for name in wanted
    ]
    arch = catalog.host_class(deployment.host_class).family.arch
    cache = startcache.key(deployment, model.revision, arch, facts.get("driver"))
    kept = startcache.directory(cache)
    instances = [
        render.instance_files(host, name, port, at.service_address, model.revision, unit_digest(), kept)
        for name, port in host.instances
    ]
    ports = [port for _, port in host.instances]
    firewall = gateway.firewall_text([*ports, *(port + READINESS_OFFSET for port in ports)], gateways)
    files = {f"{each.name}.yaml": each.config for each in instances}
    files |= {f"{each.name}.env": each.env for each in instances}
    release = render.release_digest(files)
    manifest = serving_manifest(host, catalog, encodings, model, instances, files, release, firewall)
    files["manifest.json"] = manifest.text
    lock = catalog.lock_file(deployment.engine)
    variables: dict[str, Any] = {
        "fleet_host_class": deployment.host_class,
        "harmony_encodings_files": encodings,
        "vllm_engine_directory_id": deployment.engine_directory_id,
        "vllm_engine_lock_file": str(lock),
        "vllm_engine_python_version": deployment.engine.wheel.python,
        "vllm_engine_packages": list(deployment.packages),
        "vllm_engine_alias": dict(deployment.engine.wheel.alias),
        "vllm_service_release": release,
        "vllm_service_files": [{"name": name, "content": text} for name, text in sorted(files.items())],
        "vllm_service_instances": [{"name": each.name, "loaded": each.loaded} for each in instances],
        "vllm_service_firewall_rules": firewall,
        "vllm_service_cache_key": cache,
        "vllm_service_cache_store": str(paths.cache_dir() / "start-caches"),
    }
    return variables, manifest


def _gateway(plan: Plan, host: HostPlan, backends: list[gateway.Backend]) -> tuple[dict[str, Any], Manifest]:
    config = gateway.haproxy_config(plan.gateway, backends)
    keys_document = yamlfile.read(plan.directory / plan.gateway.api_keys_file)
    keys = gateway.api_keys_text(yamlfile.parse(keys_document, ApiKeys).keys)
    tls = plan.gateway.tls
    certificate = (plan.directory / tls.certificate_file).resolve() if tls else None
    if certificate and not certificate.is_file():
        raise plan.document.error(
            ("gateway", "tls", "certificate_file"), f"there is no {paths.display(certificate)}", "correct the path"
        )
    manifest = gateway_manifest(host, config, keys, certificate)
    return {
        "gateway_config": config,
        "gateway_api_key_digests": keys,
        "gateway_certificate_file": str(certificate) if certificate else "",
    }, manifest


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
