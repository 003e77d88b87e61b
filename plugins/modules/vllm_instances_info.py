#!/usr/bin/python
"""Compares the vLLM instances of a host with its plan: which run, what they have loaded, which must restart."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: vllm_instances_info
short_description: Compare the vLLM instances of a host with its plan
description:
  - >-
    Reads which units of vLLM systemd knows, which of them run, and what each instance has loaded. Returns what a
    role must do, as lists that a task can loop over.
  - >-
    A module of its own because the answer joins the plan, systemd and files under /run. In tasks it would be
    five commands and nested filters.
  - Changes nothing; supports check mode.
options:
  instances:
    description: The instances of the plan.
    type: list
    elements: dict
    required: true
    suboptions:
      unit:
        description: The unit of the instance, with its suffix.
        type: str
        required: true
      runtime_directory:
        description: The directory in which the instance writes what it has loaded and how long its start took.
        type: path
        required: true
      loaded:
        description: What the instance writes to the file loaded when it has started with the plan's release.
        type: str
        required: true
  files:
    description: The files that the units of the instances may be read from.
    type: list
    elements: path
    default: []
author: [vllm-fleet]
"""
EXAMPLES = r"""
- vllm_instances_info:
    instances:
      - unit: vllm@0.service
        runtime_directory: /run/vllm-0
        loaded: 0123 4567
  register: __vllm_service_instances
"""
RETURN = r"""
instances:
  description: Each instance of the plan as C(unit), with the C(state) that systemd_service must bring it to.
  type: list
  returned: success
stale:
  description: >-
    The units of the plan that have not loaded the plan's release, that do not run, or that a file changes that the
    plan does not have.
  type: list
  returned: success
start_times:
  description: The files that hold the seconds of the start of each stale unit, after its next start.
  type: list
  returned: success
surplus:
  description: The units of vLLM that systemd knows and the plan does not have.
  type: list
  returned: success
foreign_unit_files:
  description: The unit files and drop-ins of the units of the plan that the plan does not have.
  type: list
  returned: success
drain_needed:
  description: Whether an instance must restart or stop, so that the host must get no traffic meanwhile.
  type: bool
  returned: success
reload_needed:
  description: Whether systemd has not read the unit file of an instance since it changed.
  type: bool
  returned: success
"""
#: The units of vLLM, of every install form.
PATTERNS = ("vllm@*.service", "vllm-docker@*.service")
RUNNING = ("active", "activating")
#: Where packages keep units. Operators use /etc and /run.
PACKAGED = ("/usr/", "/lib/")


def read_loaded(directory: str) -> str:
    """What an instance has loaded; empty if it does not run.

    The account of the instance owns the directory: no link is followed, no pipe is waited for, and no more than a line
    is read.
    """
    try:
        with open(
            os.open(os.path.join(directory, "loaded"), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb"
        ) as file:
            return file.read(4096).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def compare(
    instances: Sequence[Mapping[str, str]], states: Mapping[str, str], foreign: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """What a role must do.

    Args:
        instances: the plan, as the option of the module.
        states: unit -> active state, of the units that systemd knows.
        foreign: unit -> its files that the plan does not have. An instance may have started with them.
    """
    planned = [item["unit"] for item in instances]
    stale = [
        item
        for item in instances
        if read_loaded(item["runtime_directory"]) != item["loaded"].strip() or foreign.get(item["unit"])
    ]
    stale_units = [item["unit"] for item in stale]
    running = {unit for unit, state in states.items() if state in RUNNING}
    return {
        "instances": [{"unit": unit, "state": "restarted" if unit in stale_units else "started"} for unit in planned],
        "stale": stale_units,
        "start_times": [os.path.join(item["runtime_directory"], "started") for item in stale],
        "surplus": sorted(set(states) - set(planned)),
        "foreign_unit_files": sorted({path for paths in foreign.values() for path in paths}),
        "drain_needed": bool(stale) or running != set(planned),
    }


def foreign_unit_files(text: str, planned: Iterable[str]) -> dict[str, list[str]]:
    """The files of units that the plan does not have, as ``on_host/probe.py`` finds them: unit -> paths.

    Args:
        text: what ``systemctl show --property=Id,FragmentPath,DropInPaths`` prints for the units.
        planned: the files of the plan.
    """
    blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return {
        block["Id"]: [
            path
            for key in ("FragmentPath", "DropInPaths")
            for path in block.get(key, "").split()
            if is_foreign(path, planned)
        ]
        for block in blocks
        if "Id" in block
    }


def units_of(unit: str) -> list[str]:
    """An instance's unit and those that run for it: its container belongs to units of root."""
    if not unit.startswith("vllm-docker@"):
        return [unit]
    container = unit[: -len(".service")].replace("vllm-docker@", "vllm-container@")
    return [unit, container + ".service", container + ".socket"]


def is_foreign(path: str, planned: Iterable[str]) -> bool:
    """Whether neither the plan nor a package has a file."""
    return not path.startswith(PACKAGED) and path not in planned


def main() -> None:
    """Runs the module."""
    instance = {
        "unit": {"type": "str", "required": True},
        "runtime_directory": {"type": "path", "required": True},
        "loaded": {"type": "str", "required": True},
    }
    module = AnsibleModule(
        argument_spec={
            "instances": {"type": "list", "elements": "dict", "required": True, "options": instance},
            "files": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    instances = module.params["instances"]
    listing = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--output=json", *PATTERNS]
    states = {row["unit"]: row["active"] for row in json.loads(module.run_command(listing, check_rc=True)[1] or "[]")}
    units = [item["unit"] for item in instances]
    every = [name for unit in units for name in units_of(unit)]
    show = ["systemctl", "show", "--property=Id,FragmentPath,DropInPaths,NeedDaemonReload", *every]
    text = module.run_command(show, check_rc=True)[1] if units else ""
    found = foreign_unit_files(text, module.params["files"])
    foreign = {unit: [path for name in units_of(unit) for path in found.get(name, ())] for unit in units}
    reload_needed = "NeedDaemonReload=yes" in text.splitlines()
    module.exit_json(changed=False, reload_needed=reload_needed, **compare(instances, states, foreign))


if __name__ == "__main__":
    main()
