"""What the GPU facts are on a host with the stand-ins of the lab."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from lab import gpu
from lab.rootfs import write_files
from vllm_fleet.catalogue import catalogue
from vllm_fleet.edge import ssh

#: The driver of GB10 reports no memory, so no output of its tools would be that of its class.
_WITHOUT_TOOLS = ("gb10",)
CLASSES = [
    sized.id
    for sized in catalogue.load().sized_classes()
    if sized.family.vendor != "cpu" and sized.family.name not in _WITHOUT_TOOLS
]


def facts_of(root: Path, host: gpu.Gpus, without: str = "") -> dict[str, Any]:
    """What the program says on a host with these tools and no others."""
    files = {path: file for path, file in gpu.files(host).items() if not path.endswith(f"/{without}")}
    write_files(root, files)
    environment = {"PATH": str(root / "usr/local/bin"), "ROCM_PATH": str(root / "opt/rocm")}
    (source,) = shlex.split(ssh.pack_program("gpu_facts"))
    done = subprocess.run(
        [sys.executable, "-IS", "-c", source], env=environment, capture_output=True, text=True, check=True
    )
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts
