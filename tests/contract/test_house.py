"""The rules of the house that a test can see."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from vllm_fleet import paths

ROOT = paths.root()
MODULES = sorted(
    path
    for folder in ("vllm_fleet", "infra", "lab", "plugins", "tools", "bench")
    for path in (ROOT / folder).rglob("*.py")
)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.is_relative_to(ROOT / "vllm_fleet")], ids=lambda path: path.name
)
def test_the_core_knows_neither_ansible_nor_pulumi_nor_the_lab(path: Path) -> None:
    assert imports(path) & {"ansible", "pulumi", "infra", "lab"} == set()


def test_only_the_edge_of_the_core_reaches_other_machines() -> None:
    network = {"asyncssh", "socket", "urllib", "http", "requests"}
    # The probe runs on the host that it asks, where HAProxy answers on a Unix socket.
    core = [path for path in MODULES if "vllm_fleet" in path.parts and path.name != "probe.py"]
    found = {path.parent.name for path in core if imports(path) & network}
    assert found <= {"edge"}


def test_host_keys_are_checked_everywhere() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = ("StrictHostKeyChecking=" + "no", "host_key_checking = " + "False", "known_hosts=" + "None")
    for name in listed.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix not in (".lock", ".sum"):
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not any(word in text for word in words), name
