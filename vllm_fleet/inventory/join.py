"""Plan JOIN stack -> the site."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_fleet.base.errors import FleetError, UnusableFileError
from vllm_fleet.catalogue.catalogue import Catalog, raise_all
from vllm_fleet.catalogue.catalogue import load as load_catalog
from vllm_fleet.edge import names
from vllm_fleet.fleet import host_facts
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.fleet.plan import load as load_plan
from vllm_fleet.fleet.stack import locations, waiting_notes, without_waiting
from vllm_fleet.host import engine_install, model_disk
from vllm_fleet.host.gateway_tables import peer_ports
from vllm_fleet.host.manifest import Manifest, Port, image_ports, open_image_ports
from vllm_fleet.inventory import refusals
from vllm_fleet.inventory.gateway import gateway_systems, gateway_variables, shared_address_variables
from vllm_fleet.inventory.inputs import FleetInputs
from vllm_fleet.inventory.serving import serving_variables
from vllm_fleet.inventory.site import Site, SiteHost
from vllm_fleet.mirror import client, vocabularies
from vllm_fleet.resolve.deployment import choose
from vllm_fleet.schema.acme import CHALLENGE_PORT


def load(directory: Path) -> Site:
    """Reads a fleet's folder: plan, stack, keys and artifacts, and what the last probe of its hosts reported.

    Raises:
        FleetError: one of them is missing or does not agree with the others.
    """
    plan = load_plan(directory)
    return build(plan, load_catalog(), host_facts.load(plan.fleet))


def build(plan: Plan, catalog: Catalog, facts: host_facts.Facts | None = None) -> Site:
    """Joins a plan with its stack.

    Args:
        plan: the To-Be.
        catalog: the recipes.
        facts: host -> what its last probe reported, for rules that depend on it.

    Raises:
        FleetError: they do not agree, or a pool's engine cannot be installed yet (``refused``).
    """
    raise_all([refusal.error for refusal in _unique(refusals.list_file_refusals(plan, catalog))])
    inputs = _inputs(plan, catalog, facts or {})
    hosts = []
    for host in inputs.plan.hosts:
        if host.kind == "gateway":
            variables, items = gateway_variables(inputs, host.name)
            shared, shared_items = shared_address_variables(inputs, host)
            open_ports = dict.fromkeys((*_gateway_ports(plan), *peer_ports(plan)))
            ports = tuple(Port(port=port, address="") for port in open_ports)
            variables |= shared
            manifest = Manifest(host.name, (*items, *shared_items), gateway_systems(catalog), ports)
        else:
            variables, manifest = serving_variables(inputs, host)
            variables |= {"model_store_disk": model_disk.disk_variable(host, inputs.locations[host.name])}
        common: dict[str, Any] = {"fleet_name": plan.fleet, "fleet_pool": host.pool, "fleet_kind": host.kind}
        manifest = replace(inputs.mirror.manifest(host, manifest), fleet=plan.fleet)
        if host.rented and host.rented.table.image_firewall:
            manifest = open_image_ports(manifest)
            common["image_ports_ports"] = image_ports(manifest)
        hosts.append(
            SiteHost(
                plan=host,
                location=inputs.locations[host.name],
                variables={**common, **variables, **inputs.mirror.variables(host)},
                manifest=manifest,
            )
        )
    return Site(inputs.plan, tuple(hosts), waiting_notes(plan))


def _gateway_ports(plan: Plan) -> tuple[int, ...]:
    """The ports of a gateway that others reach."""
    is_asked = plan.gateway.tls is not None and plan.gateway.tls.acme is not None
    return (plan.gateway.port, CHALLENGE_PORT) if is_asked else (plan.gateway.port,)


def find_refusals(plan: Plan, catalog: Catalog) -> tuple[refusals.Refusal, ...]:
    """What :func:`build` would refuse, each once, for ``check`` and ``plan``; hosts need not be rented yet.

    Args:
        plan: the To-Be.
        catalog: the recipes.
    """
    found = [*refusals.list_file_refusals(plan, catalog)]
    # A run finds these two itself: its role reads the vocabularies, in the same words, and ssh its key.
    found += [refusals.Refusal(fault, is_wrong=False) for fault in vocabularies.find_faults(plan, catalog)]
    found += refusals.find_access_faults(plan)
    found += [refusals.Refusal(fault, is_wrong=False) for fault in _find_build_faults(plan, catalog)]
    return _unique(found)


def _unique(found: Iterable[refusals.Refusal]) -> tuple[refusals.Refusal, ...]:
    kept: dict[str, refusals.Refusal] = {}
    for refusal in found:
        if isinstance(refusal.error, UnusableFileError):
            refusal = replace(refusal, is_wrong=True, stops_plan=True)
        kept.setdefault(str(refusal.error), refusal)
    return tuple(kept.values())


def _find_build_faults(plan: Plan, catalog: Catalog) -> Iterator[FleetError]:
    """The errors of one host of each pool."""
    where = refusals.planned_locations(plan)
    try:
        planned = engine_install.with_engine_locks(plan, catalog)
        inputs = FleetInputs(planned, catalog, where, client.describe_mirror(planned, catalog, where), {})
    except FleetError as fault:
        yield from (fault, *fault.others)
        return
    for host in {host.pool: host for host in planned.hosts if host.deployment}.values():
        try:
            serving_variables(inputs, host)
        except FleetError as fault:
            yield from (fault, *fault.others)


def _inputs(plan: Plan, catalog: Catalog, facts: host_facts.Facts) -> FleetInputs:
    plan = _with_variants(engine_install.with_engine_locks(without_waiting(plan), catalog), facts)
    where = locations(plan, names.resolve_names)
    return FleetInputs(plan, catalog, where, client.describe_mirror(plan, catalog, where), facts)


def _with_variants(plan: Plan, facts: host_facts.Facts) -> Plan:
    """The plan with the variant of each deployment that fits the facts of its host, where they are known."""
    hosts = (
        replace(host, deployment=choose(host.deployment, facts[host.name]))
        if host.deployment and host.name in facts
        else host
        for host in plan.hosts
    )
    return replace(plan, hosts=tuple(hosts))
