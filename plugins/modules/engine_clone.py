#!/usr/bin/python
"""Begins an engine as a hard-link clone of the one on the host that has most packages in common with it."""

from __future__ import annotations

import os
import re
import shutil

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: engine_clone
short_description: Begin a virtual environment as a hard-link clone of its nearest complete neighbour
description:
  - >-
    Chooses among the complete environments beside it, of the same Python, the one whose lock shares most packages with
    the new lock, and links each of its files into a new directory: an upgrade then writes only what differs.
  - >-
    A module of its own because the choice reads the locks on the host, and because the clone must appear at once:
    a copy that was cut off would look like an environment.
  - Does nothing where no environment has a package in common.
options:
  path:
    description: The directory to make. It must not be there.
    type: path
    required: true
  lock:
    description: The lock of the new environment, on the host.
    type: path
    required: true
  locks:
    description: The folder of the locks of all environments, each called like its directory.
    type: path
    required: true
  python:
    description: The Python of the new environment, such as 3.11.
    type: str
    required: true
author: [vllm-fleet]
"""
EXAMPLES = r"""
- engine_clone:
    path: /opt/vllm/engines/vllm-0.32.0-cuda-0123456789ab
    lock: /opt/vllm/engines/locks/vllm-0.32.0-cuda-0123456789ab.txt
    locks: /opt/vllm/engines/locks
    python: "3.11"
"""
RETURN = r"""
source:
  description: The environment that was cloned; empty for none.
  type: str
  returned: success
reinstall:
  description: Packages of the clone whose version is the right one and whose files are not those of the new lock.
  type: list
  returned: success
reinstall_arguments:
  description: What makes uv install them again.
  type: list
  returned: success
"""
PIN = re.compile(r"([a-z0-9][a-z0-9-]*==\S+)")
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def read_pins(path: str) -> dict[str, set[str]]:
    """Package and version -> digests of its files; empty where the lock cannot be read."""
    pins: dict[str, set[str]] = {}
    last: set[str] | None = None
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                if pin := PIN.match(line):
                    last = pins.setdefault(pin[1], set())
                elif last is not None:
                    last.update(DIGEST.findall(line))
    except (OSError, UnicodeDecodeError):
        return {}
    return pins


def is_usable(folder: str, python: str) -> bool:
    """Whether an environment is complete, of that Python, and names no path of its own in its scripts."""
    try:
        with open(os.path.join(folder, "pyvenv.cfg"), encoding="utf-8") as file:
            settings = dict(line.strip().split(" = ", 1) for line in file if " = " in line)
    except (OSError, UnicodeDecodeError):
        return False
    return (
        os.path.isfile(os.path.join(folder, ".complete"))
        and settings.get("relocatable") == "true"
        and settings.get("version_info", "").split(".")[:2] == python.split(".")
    )


def nearest(path: str, locks: str, pins: dict[str, set[str]], python: str) -> tuple[str, dict[str, set[str]]]:
    """The environment beside ``path`` that shares most packages, and its pins; an empty name for none."""
    best: tuple[str, dict[str, set[str]], int] = ("", {}, 0)
    parent = os.path.dirname(path)
    for name in sorted(os.listdir(parent)):
        folder = os.path.join(parent, name)
        if folder == path or name.startswith(".") or not is_usable(folder, python):
            continue
        other = read_pins(os.path.join(locks, name + ".txt"))
        shared = sum(1 for pin, digests in pins.items() if digests & other.get(pin, set()))
        if shared > best[2]:
            best = (folder, other, shared)
    return best[0], best[1]


def clone(source: str, path: str) -> None:
    """Links every file of one directory into another, which appears only when it is complete."""
    draft = os.path.join(os.path.dirname(path), "." + os.path.basename(path))
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(source, draft, symlinks=True, copy_function=os.link, ignore=not_of_a_package)
    os.rename(draft, path)


def not_of_a_package(folder: str, names: list[str]) -> set[str]:
    """Leaves out the mark of completeness, which a proof sets later, and names that were added later."""
    if "pyvenv.cfg" in names:
        return {".complete"}
    if os.path.basename(folder) != "site-packages":
        return set()
    return {name for name in names if name.endswith(".dist-info") and installer(folder, name) == "vllm-fleet"}


def installer(folder: str, name: str) -> str:
    """Who installed a distribution."""
    try:
        with open(os.path.join(folder, name, "INSTALLER"), encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def main() -> None:
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "lock": {"type": "path", "required": True},
            "locks": {"type": "path", "required": True},
            "python": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    path = module.params["path"]
    if os.path.lexists(path):
        module.fail_json(msg=f"{path} exists already")
    pins = read_pins(module.params["lock"])
    source, other = nearest(path, module.params["locks"], pins, module.params["python"])
    # The installed file has one of the old digests: it surely fits the new lock only if that accepts all of them.
    reinstall = sorted(pin.split("==")[0] for pin in pins if pin in other and not other[pin] <= pins[pin])
    if source and not module.check_mode:
        try:
            clone(source, path)
        except (OSError, shutil.Error) as fault:
            module.fail_json(msg=f"{source} cannot be cloned to {path}: {fault}")
    again = reinstall if source else []
    arguments = [f"--reinstall-package={name}" for name in again]
    module.exit_json(changed=bool(source), source=source, reinstall=again, reinstall_arguments=arguments)


if __name__ == "__main__":
    main()
