"""The variables and the manifest items of the gateways, the same on each of them."""

from __future__ import annotations

from typing import Any

from vllm_fleet.base import paths, yaml_document
from vllm_fleet.host import haproxy
from vllm_fleet.host.manifest import gateway_items
from vllm_fleet.host.manifest_items import Item
from vllm_fleet.inventory.inputs import FleetInputs
from vllm_fleet.schema.fleet import ApiKeys


def gateway_variables(inputs: FleetInputs) -> tuple[dict[str, Any], tuple[Item, ...]]:
    """The variables of the role gateway, and what must be true on every gateway.

    Raises:
        FleetError: the fleet's file of API keys is missing or wrong, or its certificate is missing.
    """
    plan = inputs.plan
    config = haproxy.haproxy_config(plan.gateway, inputs.backends, inputs.gateway_addresses)
    keys_document = yaml_document.read(plan.directory / plan.gateway.api_keys_file)
    keys = haproxy.key_digests_text(yaml_document.parse(keys_document, ApiKeys).keys)
    tls = plan.gateway.tls
    certificate = (plan.directory / tls.certificate_file).resolve() if tls else None
    if certificate and not certificate.is_file():
        raise plan.document.error(
            ("gateway", "tls", "certificate_file"), f"there is no {paths.display(certificate)}", "correct the path"
        )
    variables = {
        "gateway_config": config,
        "gateway_api_key_digests": keys,
        "gateway_certificate_file": str(certificate) if certificate else "",
    }
    return variables, gateway_items(config, keys, certificate)
