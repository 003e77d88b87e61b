"""A rehearsed stack for the tests: one that is made once, and put back to how it was before each test."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hanging import HANGING_SECONDS
from typer.testing import CliRunner

from lab.rehearsal.cloud import Account, Cloud, Record
from lab.rehearsal.machines import Lab
from lab.rehearsal.serve import serve
from lab.rehearsal.stage import Stage, build
from vllm_fleet.cli import app
from vllm_fleet.edge import pulumi_cli

FLEET = "demo"
QUIET = ("--yes", "--skip-preview", "--suppress-outputs")
_KEPT = ("backend", "inventories", "cloud.db")


@dataclass(frozen=True)
class Rehearsal:
    """A stack, and the cloud that it is made in."""

    stage: Stage
    cloud: Cloud

    def up(self, check: bool = True, **more: str) -> str:
        return self.stage.pulumi("up", *QUIET, check=check, **more)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """A run of ``pulumi`` that the test will not wait for."""
        return subprocess.Popen(
            self.stage.words(*words),
            cwd=self.stage.project,
            env=dict(self.stage.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run_repair(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "infra.repair", self.stage.fleet, *words],
            cwd=self.stage.project,
            env=dict(self.stage.environment),
            capture_output=True,
            text=True,
            check=False,
        )

    def repair(self, *words: str) -> str:
        done = self.run_repair(*words)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def plan(self, *words: str) -> tuple[int, dict[str, Any]]:
        """Runs ``vllm-fleet plan``, for which the stage's project is the checkout: its exit code and its JSON."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.stage.environment.items():
                patch.setenv(name, value)
            patch.setattr(pulumi_cli, "paths", SimpleNamespace(root=lambda: self.stage.project))
            done = CliRunner().invoke(app, ["plan", "--fleet", self.stage.fleet, "--json", *words])
        return done.exit_code, json.loads(done.stdout)

    def fleet(self, change: Callable[[Any], None]) -> None:
        """Changes the fleet's file."""
        file = self.stage.folder / "fleet.yml"
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
        change(data)
        file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")

    def ids(self) -> dict[str, str]:
        """The hosts of the cloud; one name that two hosts have is an error."""
        found = {each.name: each.id for each in self.hosts()}
        assert len(found) == len(self.hosts()), [(each.name, each.id) for each in self.hosts()]
        return found

    def hosts(self) -> list[Record]:
        return [each for each in self.cloud.records if each.shape]

    def stack(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.stage.folder / "stack.json").read_text(encoding="utf-8"))
        return found["hosts"]

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stage.pulumi("stack", "export"))["deployment"]
        return found

    def wait_for(self, name: str, engine: subprocess.Popen[str]) -> Record:
        """The host of that name, when the cloud has begun to make it."""
        deadline = time.monotonic() + HANGING_SECONDS
        while not (found := [each for each in self.hosts() if each.name == name]):
            assert engine.poll() is None, engine.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found[0]

    def keep(self, label: str) -> None:
        """Keeps everything as it is now."""
        folder = self.stage.project / "kept" / label
        folder.mkdir(parents=True)
        for part in _KEPT:
            source = self.stage.project / part
            if source.is_dir():
                shutil.copytree(source, folder / part)
            elif source.is_file():
                shutil.copy(source, folder / part)

    def put_back(self, label: str) -> None:
        """Puts everything back to how it was kept."""
        folder = self.stage.project / "kept" / label
        for part in _KEPT:
            target = self.stage.project / part
            if target.is_dir():
                shutil.rmtree(target)
            target.unlink(missing_ok=True)
            if (folder / part).is_dir():
                shutil.copytree(folder / part, target)
            elif (folder / part).is_file():
                shutil.copy(folder / part, target)
        self.cloud.account = Account()
        self.cloud.load()


@contextmanager
def rehearse(project: Path, fleet: dict[str, Any], lab: Lab | None = None) -> Iterator[Rehearsal]:
    """A stage with nothing made on it yet."""
    cloud = Cloud(project / "cloud.db", *([lab.addresses] if lab else []))
    with serve(cloud, lab) as served:
        yield Rehearsal(build(project, fleet["fleet"], yaml.safe_dump(fleet, sort_keys=False), served), cloud)


def aws_fleet(**pools: Any) -> dict[str, Any]:
    """A fleet at AWS with a gateway, and pools that need no more than their class, their hosts and their placement."""
    region = {"region": "us-east-1", "zones": ["us-east-1a", "us-east-1b"]}
    rows = {
        name: {"cloud": "aws", **row, "placement": {**region, **row.get("placement", {})}}
        for name, row in pools.items()
    }
    return {
        "fleet": FLEET,
        "defaults": {"model": "openai/gpt-oss-20b"},
        "pools": rows,
        "gateway": {"hosts": 1, "plain": True},
        "access": {"ssh_from": ["203.0.113.0/24"], "api_from": ["198.51.100.0/24"]},
    }
