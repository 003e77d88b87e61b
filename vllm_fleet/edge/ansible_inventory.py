"""Reads an inventory by Ansible itself, in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError

#: Ansible's own sources of inventories; the project's own would read a fleet.yml.
_PLUGINS = "host_list,script,auto,yaml,ini,toml"
_SECONDS = 120
_MAX_LETTERS = 64 << 20
_OPTION = "--from-inventory"


def read_inventory(file: Path) -> Mapping[str, Any]:
    """What ``ansible-inventory --list`` prints: groups, and the variables of hosts below ``_meta``.

    Templates in variables are not filled in.

    Args:
        file: the inventory, a file or a folder. One that is executable is run, as Ansible does.

    Raises:
        FleetError: it does not exist, or Ansible cannot read it.
    """
    shown = paths.display(file)
    if fault := paths.path_fault(file):
        raise fault.error(key=_OPTION)
    program = Path(sys.executable).with_name("ansible-inventory")
    environment = {
        **os.environ,
        "ANSIBLE_INVENTORY_ENABLED": _PLUGINS,
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true",
        "ANSIBLE_NOCOLOR": "1",
    }
    hint = f"see what 'ansible-inventory -i {shown} --list' says"
    try:
        done = subprocess.run(
            [program, "-i", str(paths.absolute(file)), "--list"],
            env=environment,
            cwd=paths.root(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise FleetError(f"{program} is missing", "run 'make venv'", key=_OPTION) from None
    except subprocess.TimeoutExpired:
        raise FleetError(f"Ansible has not read it within {_SECONDS} s", hint, shown, key=_OPTION) from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in lines if "ERROR" in line), lines[-1] if lines else "no reason")
        raise FleetError(f"Ansible cannot read it: {_one_line(said)}", hint, shown, key=_OPTION)
    try:
        data = json.loads(done.stdout) if len(done.stdout) < _MAX_LETTERS else None
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise FleetError("Ansible prints no inventory of it", hint, shown, key=_OPTION)
    return data


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:500]
