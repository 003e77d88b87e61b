"""Directories on the controller: the project's root, its inventories and its cache."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


@cache
def root() -> Path:
    """The checkout: the nearest directory above this file that contains ``Pulumi.yaml``."""
    for folder in Path(__file__).resolve().parents:
        if (folder / "Pulumi.yaml").is_file():
            return folder
    raise FileNotFoundError("no Pulumi.yaml above vllm_fleet/: install the project from its checkout")


def cache_dir() -> Path:
    """The cache outside the checkout: ``$VLLM_FLEET_CACHE``, else the XDG cache folder."""
    if explicit := os.environ.get("VLLM_FLEET_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "vllm-fleet"


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
