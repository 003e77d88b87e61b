"""The variables and the manifest items of the gateways, the same on each of them but for their shared address."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from packaging.version import Version

from vllm_fleet.base import certificates, paths, yaml_document
from vllm_fleet.base.addresses import parse_ip
from vllm_fleet.base.errors import FleetError, InvariantError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet import api_keys_file, stack
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.host import haproxy, keepalived
from vllm_fleet.host.acme import AcmeAccount, Certificate
from vllm_fleet.host.gateway_keys import key_map_text
from vllm_fleet.host.haproxy_reader import reader_config
from vllm_fleet.host.manifest import gateway_items, shared_address_items
from vllm_fleet.host.manifest_items import Item
from vllm_fleet.inventory.inputs import FleetInputs
from vllm_fleet.schema.api_keys import ApiKeys
from vllm_fleet.schema.virtual_address import VirtualAddress

#: Filters in Lua and maps that change at once came in 2.5; 2.6 is the oldest that the tests run.
OLDEST_HAPROXY = Version("2.6")


def gateway_variables(inputs: FleetInputs, name: str) -> tuple[dict[str, Any], tuple[Item, ...]]:
    """The variables of the role gateway on a gateway, and what must be true there.

    Args:
        inputs: the fleet.
        name: the gateway.

    Raises:
        FleetError: the fleet's file of API keys or its certificate is missing or wrong.
    """
    plan = inputs.plan
    config = haproxy.haproxy_config(plan.gateway, inputs.backends, inputs.gateway_addresses, _members(inputs, name))
    reader = reader_config(plan.gateway, inputs.backends)
    keys = key_map_text(_api_keys(plan))
    certificate = Certificate(_certificate(plan), _acme(plan), inputs.mirror.proxy.environment)
    variables = {
        "gateway_config": config,
        "gateway_reader_config": reader,
        "gateway_api_key_digests": keys,
        "gateway_certificate_file": str(certificate.file) if certificate.file else "",
        "gateway_acme": certificate.settings,
        "gateway_balancer_seconds": plan.gateway.balancer_seconds,
    }
    return variables, gateway_items(config, reader, keys, certificate)


def gateway_systems(catalog: Catalog) -> dict[str, list[str]]:
    """The fact that every gateway must have: an operating system whose HAProxy runs the gateways' script."""
    known = catalog.distributions.distributions
    fresh = [name for name, each in known.items() if Version(each.haproxy) >= OLDEST_HAPROXY]
    return {"systems": sorted(fresh)}


def _members(inputs: FleetInputs, name: str) -> haproxy.Members | None:
    """The gateways that share their tables; None: there is nothing to share."""
    if not haproxy.shares_tables(inputs.plan.gateway, len(inputs.gateways)):
        return None
    addresses = {host.name: inputs.locations[host.name].service_address for host in inputs.gateways}
    return haproxy.Members(name, addresses, inputs.gateway_addresses)


def shared_address_variables(inputs: FleetInputs, host: HostPlan) -> tuple[dict[str, Any], tuple[Item, ...]]:
    """What one gateway gets for the address that it shares with the others, beside :func:`gateway_variables`."""
    gateway, shared = inputs.plan.gateway, inputs.plan.gateway.virtual_address
    config = ""
    if shared:
        members = [
            keepalived.Member(each.name, _own_address(inputs, each.name, shared), shared.interface_of(each.name))
            for each in inputs.gateways
        ]
        config = keepalived.keepalived_config(gateway, shared, members, host.name)
    return {"gateway_address_config": config}, shared_address_items(config)


def _own_address(inputs: FleetInputs, name: str, shared: VirtualAddress) -> str:
    """The address from which a gateway speaks to the others, of the family of the shared one."""
    known = inputs.locations[name].connect_from
    family = [text for text in known if (address := parse_ip(text)) and address.version == shared.ip.version]
    if not family:
        raise InvariantError(f"{name} has no address of the family of {shared.ip}, and the plan was not refused")
    return family[0]


def find_faults(plan: Plan) -> Iterator[tuple[FleetError, bool]]:
    """What keeps ``site.yml`` from the gateways' files: each error, and whether a file is wrong.

    The others are missing on this machine: they are secrets, which may not be where the fleet is only planned.
    """
    if not any(host.kind == "gateway" for host in plan.hosts):
        return
    reads: tuple[tuple[Callable[[Plan], object], Path | None], ...] = (
        (_api_keys, api_keys_file.file_of(plan)),
        (_certificate, _certificate_file(plan)),
        (_acme, _authority_file(plan)),
    )
    for read, file in reads:
        try:
            read(plan)
        except FleetError as fault:
            is_wrong = file is not None and paths.is_there(file)
            if is_wrong or read is not _api_keys or not _stack_will_write_keys(plan):
                yield from ((each, is_wrong) for each in (fault, *fault.others))


def _stack_will_write_keys(plan: Plan) -> bool:
    return api_keys_file.has_key_of_stack(plan) and not stack.is_written(plan)


def _api_keys(plan: Plan) -> ApiKeys:
    file = api_keys_file.file_of(plan)
    if fault := paths.file_fault(file):
        fault = replace(fault, reason=f"{fault.reason}, so the gateways would know no API key")
        hint = f"make a key: 'vllm-fleet key add OWNER --fleet {plan.fleet}' writes the file"
        is_named = "api_keys_file" in plan.document.data.get("gateway", {})
        at = ("gateway", "api_keys_file") if is_named else ("gateway",)
        raise plan.document.error_about(at, fault.error(hint))
    return api_keys_file.parse(yaml_document.read(file, secret=True))


def _certificate_file(plan: Plan) -> Path | None:
    tls = plan.gateway.tls
    return paths.absolute(plan.directory / tls.certificate_file) if tls and tls.certificate_file else None


def _authority_file(plan: Plan) -> Path | None:
    acme = plan.gateway.tls.acme if plan.gateway.tls else None
    return paths.absolute(plan.directory / acme.ca_file) if acme and acme.ca_file else None


def _acme(plan: Plan) -> AcmeAccount | None:
    acme = plan.gateway.tls.acme if plan.gateway.tls else None
    if acme is None:
        return None
    file, authority = _authority_file(plan), ""
    if file:
        try:
            authority = certificates.read_authority(file)
        except FleetError as fault:
            raise plan.document.error_about(("gateway", "tls", "acme", "ca_file"), fault) from None
    return AcmeAccount(acme, authority)


def _certificate(plan: Plan) -> Path | None:
    certificate = _certificate_file(plan)
    if certificate:
        try:
            certificates.check_server(certificate)
        except FleetError as fault:
            raise plan.document.error_about(("gateway", "tls", "certificate_file"), fault) from None
    return certificate
