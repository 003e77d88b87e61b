"""The variables and the manifest of one host that serves."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from vllm_fleet.base import addresses, paths
from vllm_fleet.base.addresses import host_port
from vllm_fleet.base.errors import InvariantError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.stack import Location
from vllm_fleet.host import container, container_toolkit, drivers, engine_install, model_disk, start_cache
from vllm_fleet.host.firewall import Peers
from vllm_fleet.host.instance_files import Release, instance_files
from vllm_fleet.host.manifest import Manifest, instance_unit, instance_unit_files, runtime_directory, serving_manifest
from vllm_fleet.host.serving_host import ServingHost
from vllm_fleet.inventory.inputs import FleetInputs
from vllm_fleet.mirror import client, parts, vocabularies
from vllm_fleet.resolve import gate_questions, start_promises
from vllm_fleet.resolve.deployment import Deployment


def serving_variables(inputs: FleetInputs, host: HostPlan) -> tuple[dict[str, Any], Manifest]:
    """The variables of a serving host's roles, and its manifest.

    Raises:
        FleetError: its engine cannot be installed (``refused``), or a file that the fleet names is missing.
    """
    known = inputs.facts.get(host.name)
    driver = drivers.host_driver(inputs.plan, inputs.catalog, host, inputs.mirror.packages, known)
    serving = _serving_host(inputs, host, driver)
    release = instance_files(serving)
    manifest = serving_manifest(serving, release)
    manifest = driver.extend(manifest) if driver else manifest
    if serving.model.download and not inputs.mirror.url:
        manifest = replace(manifest, items=(*manifest.items, *inputs.mirror.fetch_items()))
    manifest = replace(manifest, items=(*manifest.items, *model_disk.manifest_items(host)))
    manifest = replace(manifest, facts={**manifest.facts, **supported_systems(inputs.catalog)})
    variables = {
        **(driver.variables if driver else {}),
        "fleet_host_class": serving.deployment.host_class,
        "fleet_rollout_line": serving.line,
        "harmony_encodings_files": [
            {key: value for key, value in asdict(encoding).items() if value} for encoding in serving.encodings
        ],
        **(container.image_variables(serving.image) if serving.image else {}),
        **(engine_install.engine_variables(serving.deployment, serving.lock) if serving.lock else {}),
        **_service_variables(serving, release, manifest),
        "vllm_service_gates": _gates(inputs, serving),
        **_gateway_traffic_variables(inputs, host),
        "model_store_models": [
            client.model_variables(serving.deployment.model, serving.model, inputs.mirror.url),
        ],
    }
    return variables, manifest


def supported_systems(catalog: Catalog) -> dict[str, list[str]]:
    """The fact that every host must have: one of the operating systems that the roles support."""
    return {"systems": sorted(catalog.distributions.distributions)}


def _serving_host(inputs: FleetInputs, host: HostPlan, driver: drivers.HostDriver | None) -> ServingHost:
    deployment = host.deployment
    if deployment is None:
        raise InvariantError(f"{host.name} serves nothing")
    lock = engine_install.host_lock(inputs.plan, inputs.catalog, host)
    host_class = inputs.catalog.host_class(deployment.host_class)
    model = inputs.models[deployment.model]
    # A driver that is installed from here is known before the host reports it.
    installed = driver.facts.get("driver_version") if driver else None
    version = installed or inputs.facts.get(host.name, {}).get("driver")
    return ServingHost(
        plan=host,
        location=inputs.locations[host.name],
        deployment=deployment,
        host_class=host_class,
        peers=_peers(inputs, inputs.locations[host.name]),
        model=model,
        encodings=tuple(vocabularies.list_vocabularies(inputs.plan, inputs.catalog, deployment.model)),
        promises=tuple(start_promises.promises(inputs.catalog, deployment)),
        cache_key=start_cache.start_cache_key(deployment, model.revision, host_class.family.arch, version),
        lock=lock,
        image=_image(inputs, host, deployment),
    )


def _peers(inputs: FleetInputs, location: Location) -> Peers:
    own = dict.fromkeys(
        address for address in (location.service_address, location.address) if addresses.parse_ip(address)
    )
    return Peers(tuple(own), inputs.gateway_addresses, tuple(inputs.plan.access.engine_to))


def _image(inputs: FleetInputs, host: HostPlan, deployment: Deployment) -> container.Image | None:
    plan, catalog = inputs.plan, inputs.catalog
    if deployment.install != "docker" or deployment.engine.docker is None:
        return None
    family = catalog.host_class(deployment.host_class).family
    parts.registry_ca(plan)
    return container.Image(
        install=deployment.engine.docker,
        machine=family.facts.machine,
        vendor=family.vendor,
        registry=container.fleet_registry(plan.spec.mirror, plan.directory, inputs.mirror.registry),
        toolkit=container_toolkit.host_toolkit(plan, catalog, host, inputs.mirror.packages),
        lab=host.cloud == "lab",
    )


def _service_variables(host: ServingHost, release: Release, manifest: Manifest) -> dict[str, Any]:
    files = {**release.files, "manifest.json": manifest.text}
    return {
        "vllm_firewall_rules": host.firewall,
        "vllm_firewall_unit_filter": host.unit_filter,
        "vllm_service_release": release.digest,
        "vllm_service_files": [{"name": name, "content": text} for name, text in sorted(files.items())],
        "vllm_service_instances": [
            {
                "unit": instance_unit(host.deployment.install, instance.name),
                "runtime_directory": runtime_directory(instance.name),
                "loaded": instance.loaded,
            }
            for instance in release.instances
        ],
        "vllm_service_seats": host.plan.seats,
        "vllm_service_promises": [promise.record() for promise in host.promises],
        "vllm_service_unit_files": instance_unit_files(host.deployment.install, manifest.items),
        "vllm_service_start_cache": host.cache_directory,
        "vllm_service_start_cache_store": str(paths.cache_dir() / "start-caches"),
    }


def _gates(inputs: FleetInputs, host: ServingHost) -> dict[str, Any]:
    """What a release of the host must pass, and where what it has measured is kept."""
    model, engine = host.deployment.model, host.deployment.engine
    name = f"{host.deployment.host_class}--{engine.id}--{host.cache_key}.json"
    folder = paths.absolute(inputs.plan.directory / "references" / model.replace("/", "--"))
    return {
        **gate_questions.gate_questions(inputs.catalog, host.deployment),
        "waived": dict(inputs.plan.spec.rollout.waive),
        "reference": str(folder / name),
    }


def _gateway_traffic_variables(inputs: FleetInputs, host: HostPlan) -> dict[str, Any]:
    own = [backend for backend in inputs.backends if backend.host == host.name]
    return {
        "gateway_traffic_gateways": [gateway.name for gateway in inputs.gateways],
        "gateway_traffic_servers": [f"{b.host}_{b.instance}={host_port(b.address, b.port)}" for b in own],
    }
