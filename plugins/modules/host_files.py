#!/usr/bin/python
"""Writes small files of root and their directories, all in one task, and reloads systemd if units changed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_files
short_description: Write many small files in one task
description:
  - >-
    Creates directories, writes files with owner, group and mode, and reloads systemd if a unit changed, or if systemd
    has not read one since it changed.
  - >-
    A module of its own because a task for each file costs the controller as much as all of them together: ten files
    took eight seconds on a busy controller, and take one.
  - Idempotent; supports check mode and diff.
options:
  directories:
    description: The directories, each after those above it.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where it is.
        type: path
        required: true
      owner: &owner
        description: Its owner.
        type: str
        default: root
      group: &group
        description: Its group.
        type: str
        default: root
      mode:
        description: Its mode, octal.
        type: str
        default: '0755'
  files:
    description: The files.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where it is.
        type: path
        required: true
      content:
        description: The whole content.
        type: str
        required: true
      owner: *owner
      group: *group
      mode:
        description: Its mode, octal.
        type: str
        default: '0644'
  units:
    description: Units that systemd must have read since they changed; patterns of systemctl.
    type: list
    elements: str
    default: []
author: [vllm-fleet]
"""
EXAMPLES = r"""
- host_files:
    directories:
      - path: /usr/local/libexec
    files:
      - path: /etc/systemd/system/example.service
        content: "{{ lookup('ansible.builtin.file', 'example.service', rstrip=false) }}"
    units: [example.service]
"""
RETURN = r"""
written:
  description: The paths that were created or changed.
  type: list
  returned: success
reloaded:
  description: Whether systemd had to read its units again.
  type: bool
  returned: success
"""
UNITS = ("/etc/systemd/system/",)


def correct(module: AnsibleModule, row: Mapping[str, str]) -> bool:
    """Gives a path its owner, group and mode; whether one was different."""
    changed = bool(module.set_owner_if_different(row["path"], row["owner"], False))
    changed = bool(module.set_group_if_different(row["path"], row["group"], changed))
    return bool(module.set_mode_if_different(row["path"], row["mode"], changed))


def make_directory(module: AnsibleModule, row: Mapping[str, str]) -> bool:
    """Creates a directory, or corrects it; whether anything had to be done."""
    if os.path.isdir(row["path"]):
        return correct(module, row)
    if os.path.lexists(row["path"]):
        module.fail_json(msg=f"{row['path']} is no directory: remove it, and run again")
    if not module.check_mode:
        os.makedirs(row["path"], 0o755)
        correct(module, row)
    return True


def write_file(module: AnsibleModule, row: Mapping[str, str]) -> tuple[bool, dict[str, str] | None]:
    """Writes a file, or corrects it; whether anything had to be done, and the difference of its content."""
    path, content = row["path"], row["content"].encode()
    if os.path.islink(path) or (os.path.lexists(path) and not os.path.isfile(path)):
        module.fail_json(msg=f"{path} is no file: remove it, and run again")
    try:
        with open(path, "rb") as file:
            before = file.read()
    except FileNotFoundError:
        before = None
    if before == content:
        return correct(module, row), None
    if not module.check_mode:
        handle, name = tempfile.mkstemp(dir=module.tmpdir)
        with os.fdopen(handle, "wb") as new:
            new.write(content)
        module.atomic_move(name, path)
        correct(module, row)
    shown = "" if before is None else before.decode("utf-8", "replace")
    return True, {"before_header": path, "after_header": path, "before": shown, "after": row["content"]}


def must_reload(module: AnsibleModule, units: list[str]) -> bool:
    """Whether systemd has not read a unit since it changed."""
    if not units:
        return False
    words = ["systemctl", "show", "--value", "--property=NeedDaemonReload", *units]
    return "yes" in module.run_command(words, check_rc=True)[1].split()


def main() -> None:
    """Runs the module."""
    shared = {"owner": {"type": "str", "default": "root"}, "group": {"type": "str", "default": "root"}}
    path = {"type": "path", "required": True}
    module = AnsibleModule(
        argument_spec={
            "directories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"path": path, "mode": {"type": "str", "default": "0755"}, **shared},
            },
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": path,
                    "content": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0644"},
                    **shared,
                },
            },
            "units": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    written, diffs = [], []
    for row in module.params["directories"]:
        if make_directory(module, row):
            written.append(row["path"])
    for row in module.params["files"]:
        changed, diff = write_file(module, row)
        if changed:
            written.append(row["path"])
        if diff:
            diffs.append(diff)
    reload = any(name.startswith(UNITS) for name in written) or must_reload(module, module.params["units"])
    if reload and not module.check_mode:
        module.run_command(["systemctl", "daemon-reload"], check_rc=True)
    module.exit_json(changed=bool(written or reload), written=written, reloaded=reload, diff=diffs)


if __name__ == "__main__":
    main()
