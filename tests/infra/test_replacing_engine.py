"""The real engine on protected resources: what its preview tells, and that the printed commands are those to run."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hanging import HANGING_SECONDS

from vllm_fleet.base import paths
from vllm_fleet.edge import pulumi_cli
from vllm_fleet.fleet import replacement

pytestmark = [pytest.mark.network]

#: Files in the place of hosts: 'path' cannot be changed in place, as little as the image of a host.
PROGRAM = """
import os
from pathlib import Path
import pulumi
from infra.files import Content, TextFile
let_go = os.environ.get("FLEET_REPLACE_SERVING", "").split(",")
for word in os.environ["HOSTS"].split():
    name, path = word.split("=")
    protect = name not in let_go
    TextFile(name, Path(path), Content("text", 0o644), pulumi.ResourceOptions(protect=protect))
"""


@dataclass
class Stack:
    """A stack of files, each of which stands for a host."""

    folder: Path
    environment: dict[str, str]

    def hosts(self, **paths_by_name: str) -> None:
        self.environment["HOSTS"] = " ".join(f"{name}={at}" for name, at in paths_by_name.items())

    def run(self, line: str, check: bool = True) -> str:
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=HANGING_SECONDS,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def up(self, line: str = "pulumi up --stack demo", check: bool = True) -> str:
        return self.run(f"{line} --yes --skip-preview --non-interactive", check)

    def changes(self, monkeypatch: pytest.MonkeyPatch) -> tuple[replacement.Change, ...]:
        with monkeypatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.setattr(paths, "root", lambda: self.folder)
            patch.setattr(replacement, "_HOSTS", ("pulumi-python:dynamic/fleet:TextFile",))
            return replacement.previewed(pulumi_cli.preview("demo"))


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    (tmp_path / "Pulumi.yaml").write_text("name: demo\nruntime: python\n", encoding="utf-8")
    (tmp_path / "__main__.py").write_text(PROGRAM, encoding="utf-8")
    (tmp_path / "backend").mkdir()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PULUMI_BACKEND_URL": f"file://{tmp_path / 'backend'}",
        "PULUMI_HOME": str(tmp_path / "home"),
        "VLLM_FLEET_INVENTORIES": str(tmp_path),
        "PULUMI_CONFIG_PASSPHRASE": "only for this test",
        "PULUMI_SKIP_UPDATE_CHECK": "1",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
    }
    environment.pop(replacement.VARIABLE, None)
    found = Stack(tmp_path, environment)
    found.run("pulumi stack init demo")
    return found


def commands(stack: Stack, changes: tuple[replacement.Change, ...], *allowed: str) -> tuple[str, ...]:
    plan: Any = SimpleNamespace(fleet="demo", hosts=(), document=SimpleNamespace(file="fleet.yml"))
    return replacement.commands(plan, changes, allowed)


def test_what_would_end_is_told_and_goes_only_by_the_printed_commands(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.hosts(a="a1", b="b1", c="c1")
    stack.up()
    stack.hosts(a="a1", b="b2")  # b is replaced, c goes
    found = stack.changes(monkeypatch)
    assert [(each.host, each.what, each.why) for each in found] == [("b", "replace", ("path",)), ("c", "delete", ())]
    said = stack.up(check=False)
    assert "protect" in said
    assert sorted(path.name for path in stack.folder.glob("[abc]?")) == ["a1", "b1", "c1"]
    told = [line for line in commands(stack, found, "b", "c") if "pulumi" in line]
    assert shlex.split(told[0])[:3] == ["pulumi", "state", "unprotect"]
    assert told[1:] == [f"FLEET_REPLACE_SERVING={name} pulumi up --stack demo" for name in ("c", "b")]
    stack.run(told[0])
    # This small program leaves no other host as it is: the run for c alone would be refused for b.
    stack.up(told[2])
    assert sorted(path.name for path in stack.folder.glob("[abc]?")) == ["a1", "b2"]
    assert stack.changes(monkeypatch) == ()
