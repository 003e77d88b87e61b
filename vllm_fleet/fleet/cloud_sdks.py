"""The Pulumi plugins that the clouds of a fleet need, by the SDKs of this Python environment.

A plugin is the program that talks to a cloud. The SDK of a cloud names its plugin, with the version, in a file
``pulumi-plugin.json``, which Pulumi's language host reads too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet.plan import Plan

_FILE = "pulumi-plugin.json"


@dataclass(frozen=True)
class Plugin:
    """A plugin of Pulumi for one cloud.

    Attributes:
        name: as Pulumi knows it, such as ``azure-native``.
        version: that of its SDK, without ``v``.
    """

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def list_plugins(plan: Plan, catalog: Catalog) -> tuple[Plugin, ...]:
    """The plugins that the rented hosts of a fleet need, in the order of the fleet's clouds.

    Raises:
        FleetError: an SDK is missing (``refused``); it carries those of the other clouds.
    """
    missing = list(missing_sdks(plan, catalog))
    if missing:
        missing[0].others = missing[1:]
        raise missing[0]
    return tuple(_read_plugin(sdk) for _, sdk in _sdks(plan, catalog))


def missing_sdks(plan: Plan, catalog: Catalog) -> Iterator[FleetError]:
    """The clouds of a fleet whose SDK is not in this Python environment, each once."""
    for cloud, sdk in _sdks(plan, catalog):
        try:
            distribution(sdk)
        except PackageNotFoundError:
            yield FleetError(
                f"the cloud {cloud!r} needs the Python package {sdk}, which this environment does not have",
                f"run 'make venv', which installs every cloud's; elsewhere: pip install 'vllm-fleet[{cloud}]'",
                plan.document.file,
                code=ErrorCode.REFUSED,
            )


def _sdks(plan: Plan, catalog: Catalog) -> Iterator[tuple[str, str]]:
    for cloud in dict.fromkeys(host.cloud for host in plan.hosts if host.rented):
        if sdk := catalog.clouds[cloud].sdk:
            yield cloud, sdk


def _read_plugin(sdk: str) -> Plugin:
    found = distribution(sdk)
    (file,) = (file for file in found.files or () if file.name == _FILE)
    named = json.loads(file.read_text())
    return Plugin(named["name"], named.get("version") or found.version)
