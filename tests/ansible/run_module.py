"""Runs a module of the project as Ansible would on a host, without Ansible's connection."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from vllm_fleet.base import paths


def run_module(
    name: str, folder: Path, arguments: dict[str, Any], *, check: bool = False, path: Path | None = None
) -> dict[str, Any]:
    """What the module returns.

    Args:
        name: the module.
        folder: a folder for its own temporary files.
        arguments: its options.
        check: whether it runs in check mode.
        path: a folder of commands that it finds before those of the machine.
    """
    module = paths.root() / "plugins" / "modules" / f"{name}.py"
    private = {"_ansible_check_mode": check, "_ansible_remote_tmp": str(folder)}
    code = (
        "import sys, runpy, ansible.module_utils; from ansible.module_utils import basic;"
        f"ansible.module_utils.__path__.append({str(paths.root() / 'vllm_fleet' / 'on_host')!r});"
        "basic._ANSIBLE_ARGS = sys.argv[1].encode(); basic._ANSIBLE_PROFILE = 'legacy';"
        f"runpy.run_path({str(module)!r}, run_name='__main__')"
    )
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"} if path else None
    words = [sys.executable, "-c", code, json.dumps({"ANSIBLE_MODULE_ARGS": arguments | private})]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    return dict(json.loads(done.stdout))
