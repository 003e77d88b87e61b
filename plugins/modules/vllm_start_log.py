#!/usr/bin/python
"""Compares what instances have logged since they started with what their recipe says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: vllm_start_log
short_description: Refuse a start in which vLLM has chosen otherwise than its recipe says
description:
  - Reads the journal of each unit since its start, and looks for the lines of the recipe.
  - >-
    A module of its own because a journal may be long, and because what it tells in other words than the recipe is named
    with its unit.
  - Changes nothing; supports check mode, in which it reads nothing, since nothing was started.
options:
  units:
    description: The units that were started.
    type: list
    elements: str
    required: true
  promises:
    description: The lines. Each has C(line), a regular expression, C(names), what its first group may be, and C(what).
    type: list
    elements: dict
    required: true
author: [vllm-fleet]
"""
EXAMPLES = r"""
- vllm_start_log:
    units: [vllm@0.service]
    promises:
      - line: "Using '([A-Z]+)' Mxfp4 MoE backend"
        names: [MARLIN]
        what: the kernel of the experts
"""
RETURN = r"""
seen:
  description: The lines that matched, without those that are not as the recipe says.
  type: list
  returned: success
"""
#: Characters of a line that an error repeats.
_SHOWN = 300


def judge(lines: Sequence[str], promises: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str, bool]]:
    """Each line that a promise speaks of, and whether it is as promised.

    Args:
        lines: what a unit has logged.
        promises: the option of the module.
    """
    for promise in promises:
        pattern = re.compile(promise["line"])
        for line in lines:
            if found := pattern.search(line):
                yield promise, line[:_SHOWN], bool(promise["names"]) and found[1] in promise["names"]


def main() -> None:
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "required": True},
            "promises": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    seen: list[str] = []
    faults: list[str] = []
    for unit in () if module.check_mode else module.params["units"]:
        code, invocation, err = module.run_command(["systemctl", "show", "--property=InvocationID", "--value", unit])
        if code or not invocation.strip():
            module.fail_json(msg=f"{unit} has no start whose journal could be read: {err.strip()}")
        words = ["journalctl", "--no-pager", "--output=cat", f"_SYSTEMD_INVOCATION_ID={invocation.strip()}"]
        code, out, err = module.run_command(words)
        if code:
            module.fail_json(msg=f"the journal of {unit} cannot be read: {err.strip()}")
        for promise, line, kept in judge(out.splitlines(), module.params["promises"]):
            (seen if kept else faults).append(line if kept else f"{unit}: {promise['what']}: {line}")
    if faults:
        module.fail_json(
            msg="vLLM serves, and not as its recipe says, so the host gets no traffic: " + "; ".join(faults), seen=seen
        )
    module.exit_json(changed=False, seen=seen)


if __name__ == "__main__":
    main()
