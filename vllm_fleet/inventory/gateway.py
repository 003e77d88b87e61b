"""The variables and the manifest items of the gateways, the same on each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_fleet.base import certificates, paths, yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet import stack
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.host import haproxy
from vllm_fleet.host.acme import AcmeAccount, Certificate
from vllm_fleet.host.manifest import gateway_items
from vllm_fleet.host.manifest_items import Item
from vllm_fleet.inventory.inputs import FleetInputs
from vllm_fleet.schema.fleet import ApiKeys


def gateway_variables(inputs: FleetInputs) -> tuple[dict[str, Any], tuple[Item, ...]]:
    """The variables of the role gateway, and what must be true on every gateway.

    Raises:
        FleetError: the fleet's file of API keys or its certificate is missing or wrong.
    """
    plan = inputs.plan
    config = haproxy.haproxy_config(plan.gateway, inputs.backends, inputs.gateway_addresses)
    keys = haproxy.key_digests_text(_api_keys(plan).keys)
    certificate = Certificate(_certificate(plan), _acme(plan), inputs.mirror.proxy.environment)
    variables = {
        "gateway_config": config,
        "gateway_api_key_digests": keys,
        "gateway_certificate_file": str(certificate.file) if certificate.file else "",
        "gateway_acme": certificate.settings,
    }
    return variables, gateway_items(config, keys, certificate)


def find_faults(plan: Plan) -> Iterator[tuple[FleetError, bool]]:
    """What keeps ``site.yml`` from the gateways' files: each error, and whether a file is wrong.

    The others are missing on this machine: they are secrets, which may not be where the fleet is only planned.
    """
    if not any(host.kind == "gateway" for host in plan.hosts):
        return
    reads: tuple[tuple[Callable[[Plan], object], Path | None], ...] = (
        (_api_keys, _keys_file(plan)),
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
