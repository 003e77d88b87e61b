"""Directories on the controller: the project's root, its inventories and its cache."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from vllm_fleet.base.errors import FleetError


@cache
def root() -> Path:
    """The checkout: the nearest directory above this file that contains ``Pulumi.yaml``."""
    for folder in Path(__file__).resolve().parents:
        if (folder / "Pulumi.yaml").is_file():
            return folder
    raise FileNotFoundError("no Pulumi.yaml above vllm_fleet/: install the project from its checkout")


def cache_dir() -> Path:
    """The cache outside the checkout: ``$VLLM_FLEET_CACHE``, else the XDG cache folder.

    Raises:
        FleetError: the variable names no folder.
    """
    if explicit := os.environ.get("VLLM_FLEET_CACHE"):
        check_folder("VLLM_FLEET_CACHE", Path(explicit), "correct the variable")
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "vllm-fleet"


def check_folder(name: str, folder: Path, hint: str) -> None:
    """Expects that a folder exists or can be made.

    Args:
        name: the option or variable that gives it.
        folder: its path.
        hint: what to do if it cannot.

    Raises:
        FleetError: something else has its place, or that of a folder above it.
    """
    for place in (folder, *folder.parents):
        if os.path.lexists(place):
            # Path.is_dir raises for what it may not look at.
            if not os.path.isdir(place):  # noqa: PTH112
                raise FleetError(f"{name} {folder}: {display(place)} is not a folder", hint)
            return


def inventories_dir() -> Path:
    """The directory of the fleets: ``$VLLM_FLEET_INVENTORIES``, else ``inventories/`` in the checkout."""
    explicit = os.environ.get("VLLM_FLEET_INVENTORIES")
    return Path(explicit) if explicit else root() / "inventories"


def run_dir(fleet: str) -> Path:
    """The directory for state between runs on a fleet; it can be deleted at any time."""
    return root() / ".fleet" / fleet


def expand_user(path: Path | str) -> Path:
    """The path with ``~`` and ``~user`` replaced; unchanged where no such home is known."""
    # Path.expanduser raises a RuntimeError then.
    return Path(os.path.expanduser(path))  # noqa: PTH111


def display(path: Path) -> str:
    """The path as a user types it: relative to the working directory if it is inside."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
