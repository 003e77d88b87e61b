#!/usr/bin/python
"""Reads which packages are installed, which of them are not on hold, and which others apt knows."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: dpkg_info
short_description: Read installed packages by pattern
description:
  - Lists the installed packages whose names match, with their versions, and those of them that are not on hold.
  - Says which of some other packages apt could install.
  - >-
    A module of its own because package_facts reads every package of the host, and knows neither holds nor what
    apt could install.
  - Changes nothing; supports check mode.
options:
  patterns:
    description: Names or shell patterns of packages.
    type: list
    elements: str
    default: []
  candidates:
    description: Names of packages that apt may know.
    type: list
    elements: str
    default: []
  suffix:
    description: What every name in I(candidates) ends with besides, such as the version of a kernel.
    type: str
    default: ""
author: [vllm-fleet]
"""
EXAMPLES = r"""
- dpkg_info:
    patterns: ["linux-image-*"]
  register: __driver_packages_kernels
"""
RETURN = r"""
installed:
  description: The installed packages, each as its name and version.
  type: list
  returned: success
not_held:
  description: The names of the installed packages that are not on hold.
  type: list
  returned: success
available:
  description: The packages of I(candidates), with their suffix, that apt could install.
  type: list
  returned: success
"""
FORMAT = r"--showformat=${binary:Package} ${Version} ${db:Status-Want} ${db:Status-Status}\n"


def read_rows(text: str) -> list[tuple[str, str, bool]]:
    """The rows of dpkg-query that are installed: (name, version, whether it is on hold)."""
    rows = [line.split() for line in text.splitlines()]
    return [(row[0], row[1], row[2] == "hold") for row in rows if len(row) == 4 and row[3] == "installed"]


def main() -> None:
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={
            "patterns": {"type": "list", "elements": "str", "default": []},
            "candidates": {"type": "list", "elements": "str", "default": []},
            "suffix": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    rows: list[tuple[str, str, bool]] = []
    if module.params["patterns"]:
        code, out, err = module.run_command(["dpkg-query", "--show", FORMAT, *module.params["patterns"]])
        # 1: nothing is installed of one of the patterns.
        if code not in (0, 1):
            module.fail_json(msg=f"dpkg-query failed: {err.strip()}")
        rows = read_rows(out)
    names = [name + module.params["suffix"] for name in module.params["candidates"]]
    available = [name for name in names if module.run_command(["apt-cache", "show", name])[0] == 0]
    module.exit_json(
        changed=False,
        installed=sorted(f"{name} {version}" for name, version, _ in rows),
        not_held=[name for name, _, held in rows if not held],
        available=available,
    )


if __name__ == "__main__":
    main()
