"""Loads a plugin of Ansible, which lies in no package."""

from __future__ import annotations

import importlib.util
from typing import Any

from vllm_fleet.base import paths


def plugin_module(name: str) -> Any:
    """The module of a plugin, fresh.

    Args:
        name: its file below ``plugins``, such as ``inventory/fleet.py``.
    """
    path = paths.root() / "plugins" / name
    spec = importlib.util.spec_from_file_location(f"plugin_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
