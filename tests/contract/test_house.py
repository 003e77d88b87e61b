"""The rules of the house that a test can see."""

from __future__ import annotations

import subprocess

from vllm_fleet.base import paths

ROOT = paths.root()


def test_host_keys_are_checked_everywhere() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = ("StrictHostKeyChecking=" + "no", "host_key_checking = " + "False", "known_hosts=" + "None")
    for name in listed.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix not in (".lock", ".sum"):
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not any(word in text for word in words), name
