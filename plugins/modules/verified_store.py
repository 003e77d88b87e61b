#!/usr/bin/python
"""Verifies every file of a directory once and leaves a stamp that later checks can trust."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: verified_store
short_description: Verify the files of a directory by SHA-256 and stamp it
description:
  - Reads every file once, compares its SHA-256 and writes a stamp with size and time of each.
  - >-
    A module of its own because a model has tens of gigabytes: stat with a checksum would read them in one task a
    file, and again in every run; the stamp tells a later check that nothing has changed since.
options:
  path:
    description: The directory.
    type: path
    required: true
  files:
    description: The files with their digests.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: File name.
        type: str
        required: true
      sha256:
        description: The digest that it must have.
        type: str
        required: true
  stamp_only:
    description: Only compare the stamp with size and time of the files; read none and stamp none.
    type: bool
    default: false
author: [vllm-fleet]
"""
EXAMPLES = r"""
- verified_store:
    path: /var/lib/vllm/models/openai--gpt-oss-20b/main
    files: [{name: config.json, sha256: 0123...}]
"""
RETURN = r"""
verified:
  description: The files that were read.
  type: list
  returned: success
missing:
  description: With O(stamp_only), the files that are not as they were verified.
  type: list
  returned: success
"""
STAMP = ".verified.json"


def sha256(path: str) -> str:
    """Digest of a file, in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def read_stamp(path: str) -> dict[str, Any]:
    """The stamp; empty if it is missing or unreadable."""
    try:
        with open(path) as file:
            stamp = json.load(file)
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def entry(path: str, digest: str) -> dict[str, Any]:
    """What the stamp keeps of a file."""
    info = os.stat(path)
    return {"sha256": digest, "size": info.st_size, "mtime_ns": info.st_mtime_ns}


def as_stamped(folder: str, item: dict[str, str], stamp: dict[str, Any]) -> bool:
    """Whether a file is still as it was when it was verified."""
    path = os.path.join(folder, item["name"])
    return os.path.isfile(path) and stamp.get(item["name"]) == entry(path, item["sha256"])


def main() -> None:
    """Runs the module."""
    files = {"name": {"type": "str", "required": True}, "sha256": {"type": "str", "required": True}}
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "files": {"type": "list", "elements": "dict", "required": True, "options": files},
            "stamp_only": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    folder = module.params["path"]
    stamp_file = os.path.join(folder, STAMP)
    old = read_stamp(stamp_file)
    if module.params["stamp_only"]:
        names = [item["name"] for item in module.params["files"] if not as_stamped(folder, item, old)]
        # What is missing will be brought by others: in check mode that is the change to tell.
        module.exit_json(changed=bool(names) and module.check_mode, missing=names)
    new: dict[str, Any] = {}
    verified: list[str] = []
    for item in module.params["files"]:
        path = os.path.join(folder, item["name"])
        if not os.path.isfile(path):
            if module.check_mode:
                continue
            module.fail_json(msg=f"{path} is missing")
        if old.get(item["name"]) == entry(path, item["sha256"]):
            new[item["name"]] = old[item["name"]]
            continue
        seen = sha256(path)
        verified.append(item["name"])
        if seen != item["sha256"] and not module.check_mode:
            module.fail_json(msg=f"{path} has the SHA-256 {seen}, not {item['sha256']}")
        new[item["name"]] = entry(path, item["sha256"])
    changed = new != old
    if changed and not module.check_mode:
        descriptor, name = tempfile.mkstemp(dir=folder)
        with os.fdopen(descriptor, "w") as file:
            json.dump(new, file, indent=1, sort_keys=True)
        os.chmod(name, 0o644)
        os.replace(name, stamp_file)
    module.exit_json(changed=changed, verified=verified)


if __name__ == "__main__":
    main()
