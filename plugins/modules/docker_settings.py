#!/usr/bin/python
"""Merges settings into docker's daemon.json, after it has checked that the docker of the host can be used."""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

# It is vllm_fleet/on_host/docker_engine.py, by module_utils in ansible.cfg.
import ansible.module_utils.docker_engine as docker_engine  # type: ignore[import-not-found]
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: docker_settings
short_description: Merge settings into docker's daemon.json
description:
  - >-
    Refuses a host whose docker cannot be used, or whose packages apt would remove to install docker.io, or whose
    settings contradict those that are needed, before anything changes.
  - Adds the settings that are missing. Every other setting, the owner and the mode of the file stay.
  - Writes down what it has added, so that it can be removed again.
  - >-
    A module of its own because a template replaces the whole file, and docker does not start with a setting that is
    on its command line too.
  - Idempotent; supports check mode and diff.
options:
  settings:
    description: The settings that the containers need, as JSON.
    type: json
    required: true
  defaults:
    description: Further settings for a file that does not exist yet, as JSON.
    type: json
    default: "{}"
  path:
    description: The file of the daemon.
    type: path
    default: /etc/docker/daemon.json
  record:
    description: The file that keeps what was added.
    type: path
    default: /etc/vllm-fleet/docker.json
author: [vllm-fleet]
"""
EXAMPLES = r"""
- docker_settings:
    settings: '{"live-restore": true}'
  register: __container_engine_settings
"""
RETURN = r"""
package:
  description: The package that brings the daemon; empty if none is installed.
  type: str
  returned: success
"""


def write(path: str, text: str, like: str) -> None:
    """Replaces a file at once, with the owner and the mode of another one, else those of a new file of root."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".vllm-fleet-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    if os.path.exists(like):
        known = os.stat(like)
        os.chown(draft, known.st_uid, known.st_gid)
        os.chmod(draft, known.st_mode & 0o7777)
    else:
        os.chmod(draft, 0o644)
    os.replace(draft, path)


def read_record(path: str) -> dict[str, Any]:
    """What was added before."""
    try:
        with open(path, encoding="utf-8") as file:
            record: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        return {"added": [], "created": False}
    return record


def text_of(settings: Any) -> str:
    """Settings as the text of the file."""
    return json.dumps(settings, indent=2) + "\n"


def main() -> None:
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={
            "settings": {"type": "json", "required": True},
            "defaults": {"type": "json", "default": "{}"},
            "path": {"type": "path", "default": "/etc/docker/daemon.json"},
            "record": {"type": "path", "default": "/etc/vllm-fleet/docker.json"},
        },
        supports_check_mode=True,
    )
    path = module.params["path"]
    ours = json.loads(module.params["settings"])
    conflicts = docker_engine.find_conflicts(ours, path)
    if conflicts:
        module.fail_json(
            msg="nothing was changed: " + "; ".join(text for _, text in conflicts),
            codes=[code for code, _ in conflicts],
        )
    created = not os.path.exists(path)
    theirs = docker_engine.read_settings(path)
    if created:
        ours = {**json.loads(module.params["defaults"]), **ours}
    merged, added, _ = docker_engine.merge_settings(theirs, ours)
    changed = bool(added)
    if changed and not module.check_mode:
        record = read_record(module.params["record"])
        record = {
            "created": bool(record["created"] or created),
            "added": [*record["added"], *(row for row in added if row not in record["added"])],
        }
        # First what is ours, then the change: a run that stops here adds the same settings again.
        write(module.params["record"], text_of(record), module.params["record"])
        write(path, text_of(merged), path)
    package = (docker_engine.installed(docker_engine.PACKAGES) or [""])[0]
    diff = {
        "before_header": path,
        "after_header": path,
        "before": text_of(theirs) if not created else "",
        "after": text_of(merged),
    }
    module.exit_json(changed=changed, package=package, **({"diff": diff} if changed else {}))


if __name__ == "__main__":
    main()
