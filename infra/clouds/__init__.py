"""The clouds that fleets can be made in: one module each, imported only when a plan names it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import cast

import pulumi

from infra.hosts import CloudArgs, CloudComponent
from vllm_fleet.base.errors import FleetError

#: cloud -> its component, as module and class: a new cloud is one more line and one more module.
CLOUDS: Mapping[str, tuple[str, str]] = {
    "lab": ("infra.clouds.lab", "LabCloud"),
    "aws": ("infra.clouds.aws", "AwsCloud"),
    "gcp": ("infra.clouds.gcp", "GcpCloud"),
    "azure": ("infra.clouds.azure", "AzureCloud"),
    "oci": ("infra.clouds.oci", "OciCloud"),
    "digitalocean": ("infra.clouds.digitalocean", "DigitalOceanCloud"),
    "static": ("infra.clouds.static", "StaticCloud"),
}


#: How a component is made: name, args, options.
Make = Callable[[str, CloudArgs, pulumi.ResourceOptions], CloudComponent]


def component(cloud: str) -> Make:
    """The component that makes hosts in a cloud.

    Raises:
        FleetError: this release does not know the cloud.
    """
    if cloud not in CLOUDS:
        raise FleetError(
            f"this release makes no hosts in the cloud {cloud!r}",
            f"it knows {', '.join(sorted(CLOUDS))}",
            key="cloud",
            code="refused",
        )
    module, name = CLOUDS[cloud]
    try:
        return cast(Make, getattr(import_module(module), name))
    except ModuleNotFoundError as missing:
        if not str(missing.name).startswith("pulumi_"):
            raise
        raise FleetError(
            f"the cloud {cloud!r} needs the Python package {str(missing.name).replace('_', '-')}",
            f"uv sync --extra {cloud}, or: pip install 'vllm-fleet[{cloud}]'",
            key="cloud",
            code="refused",
        ) from None
