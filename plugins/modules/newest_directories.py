#!/usr/bin/python
"""Removes all directories of a folder except the newest and a current one."""

from __future__ import annotations

import os
import shutil

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: newest_directories
short_description: Keep only the newest directories of a folder
description:
  - Removes every directory of a folder except the current one and the newest others. Files and links stay.
  - >-
    A module of its own because the choice sorts by time and counts; in tasks it would be a filter chain, and one
    task for each directory.
  - Idempotent; supports check mode and diff.
options:
  path:
    description: The folder.
    type: path
    required: true
  current:
    description: The name of the directory that always stays.
    type: str
    required: true
  kept:
    description: How many directories stay, the current one included.
    type: int
    required: true
author: [vllm-fleet]
"""
EXAMPLES = r"""
- newest_directories:
    path: /opt/vllm/releases
    current: 0123456789abcdef
    kept: 3
"""
RETURN = r"""
removed:
  description: The directories that were removed, or in check mode would be.
  type: list
  returned: success
"""


def old_directories(path: str, current: str, kept: int) -> list[str]:
    """The directories to remove, oldest last.

    Args:
        path: the folder; a missing one has no directories.
        current: the name that always stays.
        kept: how many stay, the current one included.
    """
    try:
        with os.scandir(path) as entries:
            others = [entry for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name != current]
    except FileNotFoundError:
        return []
    others.sort(key=lambda entry: (entry.stat(follow_symlinks=False).st_mtime_ns, entry.name), reverse=True)
    return [entry.path for entry in others[max(kept - 1, 0) :]]


def main() -> None:
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "current": {"type": "str", "required": True},
            "kept": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    old = old_directories(module.params["path"], module.params["current"], module.params["kept"])
    for folder in [] if module.check_mode else old:
        try:
            shutil.rmtree(folder)
        except OSError as fault:
            module.fail_json(msg=f"cannot remove {folder}: {fault}")
    diff = {"before": "".join(f"{folder}\n" for folder in sorted(old)), "after": ""}
    module.exit_json(changed=bool(old), removed=old, diff=diff)


if __name__ == "__main__":
    main()
