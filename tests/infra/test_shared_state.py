"""docs/state.md: two people share the state of a stack, in a folder and in an S3 bucket, and it moves elsewhere."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import s3_server
import yaml
from rehearsing import FLEET, QUIET, Rehearsal, aws_fleet

from lab.rehearsal.cloud import Cloud, Fault
from lab.rehearsal.serve import serve
from lab.rehearsal.stage import Stage, build
from vllm_fleet.base import paths

# The engine is built from a package registry.
pytestmark = pytest.mark.network

INSTANCE = "aws:ec2/instance:Instance"
#: The files of a fleet on the machine of each person; what is said of them is tested where they are written.
FILE = "pulumi-python:dynamic/fleet:TextFile"


@pytest.fixture(params=[pytest.param("file", marks=pytest.mark.long), "s3"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The URL of a backend, and the folder that holds what it stores."""
    store = tmp_path / "store"
    if request.param == "file":
        (store / "states").mkdir(parents=True)
        yield f"file://{store / 'states'}", store
        return
    with s3_server.serving(store, "states") as url:
        yield url, store


@pytest.fixture
def first(backend: tuple[str, Path], tmp_path: Path) -> Iterator[Rehearsal]:
    """The stack of the first person, with one host and a gateway."""
    fleet = aws_fleet(main={"host_class": "h100-1", "hosts": 1})
    cloud = Cloud(tmp_path / "cloud.json")
    with serve(cloud, None, ("aws",)) as served:
        shared = {**served, **s3_server.KEYS, "PULUMI_BACKEND_URL": backend[0]}
        text = yaml.safe_dump(fleet, sort_keys=False)
        found = Rehearsal(build(tmp_path / "first", FLEET, text, shared), cloud)
        found.up()
        yield found


def second_checkout(first: Rehearsal, project: Path) -> Rehearsal:
    """What another person has: the committed files, and the shared backend and passphrase."""
    stage = first.stage
    folder = project / "inventories" / stage.fleet
    folder.mkdir(parents=True)
    (project / "infra").symlink_to(paths.root() / "infra")
    for file in ("Pulumi.yaml", f"Pulumi.{stage.fleet}.yaml"):
        shutil.copy(stage.project / file, project)
    shutil.copy(stage.folder / "fleet.yml", folder)
    own = {"VLLM_FLEET_INVENTORIES": str(project / "inventories"), "PULUMI_HOME": str(project / "home")}
    return replace(first, stage=Stage(stage.fleet, project, {**stage.environment, **own}))


def differences(found: Rehearsal) -> list[tuple[str, str]]:
    """What a preview would change."""
    report: dict[str, Any] = json.loads(found.stage.pulumi("preview", "--json").partition("\nwarning:")[0])
    assert report["changeSummary"]["same"] > 10
    steps = [(step["op"], step["urn"]) for step in report["steps"]]
    return [(op, urn) for op, urn in steps if op != "same"]


def test_two_people_share_a_stack(first: Rehearsal, backend: tuple[str, Path], tmp_path: Path) -> None:
    second = second_checkout(first, tmp_path / "second")
    # A fresh checkout lacks the files of the stack: they are written, and no other resource differs.
    lacks = differences(second)
    assert {(op, urn.split("::")[2].rpartition("$")[2]) for op, urn in lacks} == {("update", FILE)}
    assert len(lacks) == 4
    texts = [path.read_text(errors="replace") for path in backend[1].rglob("*.json*") if path.is_file()]
    assert any(first.ids()["main-0"] in text for text in texts), "the state is in the backend"
    key = (first.stage.folder / "ssh" / "id_ed25519").read_text(encoding="utf-8").splitlines()[2]
    for secret in ("OPENSSH PRIVATE KEY", "ed25519_private", key, first.stage.environment["PULUMI_CONFIG_PASSPHRASE"]):
        assert not any(secret in text for text in texts), secret

    # While one of them works, the other is refused.
    first.fleet(lambda fleet: fleet["pools"]["main"].update(hosts=2))
    shutil.copy(first.stage.folder / "fleet.yml", second.stage.folder)
    first.cloud.faults = [Fault("create", INSTANCE, "main-1", seconds=60, times=1)]
    engine = first.begin("up", *QUIET)
    begun = first.wait_for("main-1", engine)
    refused = second.up(check=False)
    assert "the stack is currently locked by 1 lock(s)" in refused
    assert "delete the lock file with `pulumi cancel`" in refused

    # The machine of the first dies: the lock stays, and so does the creation that nobody knows the end of.
    engine.send_signal(signal.SIGKILL)
    engine.communicate()
    first.cloud.faults = []
    assert "the stack is currently locked by 1 lock(s)" in second.up(check=False)
    second.stage.pulumi("cancel", "--yes")
    told = second.run_repair()
    assert told.returncode == 2
    assert "interrupted while it created main-1: it may exist and cost money" in told.stderr
    assert "--adopt main-1=ITS_ID" in told.stderr
    done = second.run_repair("--adopt", f"main-1={begun.id}")
    assert done.returncode == 0, done.stderr
    second.up()
    assert second.ids()["main-1"] == begun.id
    assert differences(second) == []

    if not backend[0].startswith("s3:"):
        return
    # The state moves out of the bucket into a folder, with its secrets encrypted on the way.
    file = tmp_path / "moved.json"
    second.stage.pulumi("stack", "export", "--file", str(file))
    assert "OPENSSH PRIVATE KEY" not in file.read_text(encoding="utf-8")
    (tmp_path / "new").mkdir()
    environment = {**second.stage.environment, "PULUMI_BACKEND_URL": f"file://{tmp_path / 'new'}"}
    moved = replace(second, stage=replace(second.stage, environment=environment))
    moved.stage.pulumi("stack", "init")
    moved.stage.pulumi("stack", "import", "--file", str(file))
    assert differences(moved) == []
