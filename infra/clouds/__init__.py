"""The clouds: entry points of installed packages. A cloud is imported only when a plan names it.

The clouds of this project are in ``pyproject.toml`` under ``[project.entry-points."vllm_fleet.clouds"]``. Another
package adds a cloud with an entry point of the same group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import cast, get_args

import pulumi

from infra.hosts import CloudArgs, CloudComponent
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.schema.recipe import Cloud

#: The group of entry points: the cloud's name -> its component, as ``module:Class``.
GROUP = "vllm_fleet.clouds"

#: The constructor of a component: name, args, options.
Make = Callable[[str, CloudArgs, pulumi.ResourceOptions], CloudComponent]


def registered_clouds() -> Mapping[str, EntryPoint]:
    """Cloud -> the entry point of its component, of every package in this environment.

    Raises:
        FleetError: two packages register different components for one cloud.
    """
    clouds: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = clouds.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise FleetError(
                f"two packages register the cloud {entry.name!r}: {other.value} and {entry.value}",
                "uninstall one of them",
                key="cloud",
                code=ErrorCode.REFUSED,
            )
    return clouds


def component(cloud: str) -> Make:
    """Imports the component of a cloud.

    Raises:
        FleetError: no package registers the cloud, or the cloud's SDK is not installed.
    """
    clouds = registered_clouds()
    if cloud not in clouds:
        raise _unregistered(cloud, clouds)
    try:
        return cast(Make, clouds[cloud].load())
    except ModuleNotFoundError as missing:
        if not str(missing.name).startswith("pulumi_"):
            raise
        raise FleetError(
            f"the cloud {cloud!r} needs the Python package {str(missing.name).replace('_', '-')}",
            f"run 'make venv', which installs every cloud's; elsewhere: pip install 'vllm-fleet[{cloud}]'",
            key="cloud",
            code=ErrorCode.REFUSED,
        ) from None


def _unregistered(cloud: str, clouds: Mapping[str, EntryPoint]) -> FleetError:
    """The error for a cloud that no package registers."""
    if cloud in get_args(Cloud):
        # The metadata of an editable install is written once: a checkout that moved on has new clouds, but it has not.
        return FleetError(
            f"this Python environment does not register the cloud {cloud!r}: it was made from another release",
            "run 'make venv' (or install vllm-fleet again), then repeat the command",
            key="cloud",
            code=ErrorCode.REFUSED,
        )
    return FleetError(
        f"this release makes no hosts in the cloud {cloud!r}",
        f"it knows {', '.join(sorted(clouds))}",
        key="cloud",
        code=ErrorCode.REFUSED,
    )
