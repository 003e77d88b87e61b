"""The variables and the manifest items of the gateways, the same on each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_fleet.base import certificates, paths, yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet import stack
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.host import haproxy
from vllm_fleet.host.haproxy_reader import reader_config
from vllm_fleet.host.manifest import gateway_items
from vllm_fleet.host.manifest_items import Item
from vllm_fleet.inventory.inputs import FleetInputs
from vllm_fleet.schema.fleet import ApiKeys


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
    keys = haproxy.key_digests_text(_api_keys(plan).keys)
    certificate = _certificate(plan)
    variables = {
        "gateway_config": config,
        "gateway_reader_config": reader,
        "gateway_api_key_digests": keys,
        "gateway_certificate_file": str(certificate) if certificate else "",
    }
    return variables, gateway_items(config, reader, keys, certificate)


def _members(inputs: FleetInputs, name: str) -> haproxy.Members | None:
    """The gateways that share their tables; None: there is nothing to share."""
    if not haproxy.shares_tables(inputs.plan.gateway, len(inputs.gateways)):
        return None
    addresses = {host.name: inputs.locations[host.name].service_address for host in inputs.gateways}
    return haproxy.Members(name, addresses, inputs.gateway_addresses)


def find_faults(plan: Plan) -> Iterator[tuple[FleetError, bool]]:
    """What keeps ``site.yml`` from the gateways' files: each error, and whether a file is wrong.

    The others are missing on this machine: they are secrets, which may not be where the fleet is only planned.
    """
    if not any(host.kind == "gateway" for host in plan.hosts):
        return
    tls = plan.gateway.tls
    certificate = plan.directory / tls.certificate_file if tls else None
    for read, file in ((_api_keys, _keys_file(plan)), (_certificate, certificate)):
        try:
            read(plan)
        except FleetError as fault:
            is_wrong = file is not None and paths.is_there(file)
            if is_wrong or read is _certificate or not _stack_will_write_keys(plan):
                yield from ((each, is_wrong) for each in (fault, *fault.others))


def _stack_will_write_keys(plan: Plan) -> bool:
    is_rented = any(host.cloud != "static" for host in plan.hosts)
    return is_rented and plan.access.api_keys == "generated" and not stack.is_written(plan)


def _keys_file(plan: Plan) -> Path:
    return plan.directory / plan.gateway.api_keys_file


def _api_keys(plan: Plan) -> ApiKeys:
    file = _keys_file(plan)
    if fault := paths.file_fault(file):
        fault = replace(fault, reason=f"{fault.reason}, so the gateways would know no API key")
        hint = (
            "write it: 'keys:' and below it OWNER: \"sha256:...\", the SHA-256 of the key; 'vllm-fleet init' makes one"
        )
        is_named = "api_keys_file" in plan.document.data.get("gateway", {})
        at = ("gateway", "api_keys_file") if is_named else ("gateway",)
        raise plan.document.error_about(at, fault.error(hint))
    return yaml_document.parse(yaml_document.read(file, secret=True), ApiKeys)


def _certificate(plan: Plan) -> Path | None:
    tls = plan.gateway.tls
    certificate = paths.absolute(plan.directory / tls.certificate_file) if tls else None
    if certificate:
        try:
            certificates.check_server(certificate)
        except FleetError as fault:
            raise plan.document.error_about(("gateway", "tls", "certificate_file"), fault) from None
    return certificate
