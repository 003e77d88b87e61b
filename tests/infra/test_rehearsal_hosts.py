"""A rehearsed stack whose hosts are there: they answer with the key of the stack and pose as their class."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hanging import HANGING_SECONDS
from rehearsing import QUIET, Rehearsal, aws_fleet, rehearse

from lab import process, state
from lab.rehearsal import __main__ as program
from lab.rehearsal import ansible
from lab.rehearsal.machines import Lab
from lab.rehearsal.stage import end_left
from vllm_fleet.base import paths

pytestmark = [pytest.mark.root, pytest.mark.network]
BRIDGE = "vf-reh-test"
SUBNET = "10.78.1"


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    project = tmp_path_factory.mktemp("hosts")
    lab = Lab(BRIDGE, SUBNET, project)
    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    with (paths.cache_dir() / "test-rehearsal.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lab.open()
        try:
            with rehearse(project, aws_fleet(main={"host_class": "h100-1", "hosts": 1}), lab) as found:
                found.up()
                yield found
        finally:
            lab.close()


def test_hosts_answer_with_the_key_of_the_stack_and_are_of_their_class(booted: Rehearsal) -> None:
    assert ansible.vetoes(booted.stage) == {"main-0": (), "gateway-0": ()}
    file = booted.stage.folder / "fleet.yml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("h100-1", "h100-8"), encoding="utf-8")
    try:
        (veto,) = ansible.vetoes(booted.stage)["main-0"]
    finally:
        file.write_text(text, encoding="utf-8")
    assert veto.startswith("has 1 GPU, its class has 8")


def test_a_host_that_died_is_seen_by_a_refresh_and_made_again_with_the_same_key(booted: Rehearsal) -> None:
    before = booted.stack()
    for each in process.find(state.host_dir(BRIDGE, "main-0") / "root"):
        os.kill(each.pid, signal.SIGKILL)
    assert "- 1 deleted" in booted.stage.pulumi("refresh", *QUIET)
    booted.up()
    after = booted.stack()
    assert before["main-0"]["id"] != after["main-0"]["id"]
    assert before["main-0"]["ssh_host_key"] == after["main-0"]["ssh_host_key"]
    assert before["gateway-0"] == after["gateway-0"]
    assert ansible.vetoes(booted.stage) == {"main-0": (), "gateway-0": ()}


def test_a_killed_rehearsal_is_repaired_by_the_next_which_plays_to_the_end_and_leaves_nothing(tmp_path: Path) -> None:
    """What ``make rehearse`` runs, on the bridge that it has: killed when its hosts come up, and once more."""
    fleet = aws_fleet(main={"host_class": "h100-1", "hosts": 1})
    fleet |= {"fleet": "killed", "artifacts": {"models": {"openai/gpt-oss-20b": "{cache}/none"}}}
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / "fleet.yml").write_text(yaml.safe_dump(fleet, sort_keys=False), encoding="utf-8")
    words = [sys.executable, "-m", "lab.rehearsal", "killed"]
    environment = {**os.environ, "VLLM_FLEET_INVENTORIES": str(tmp_path)}
    project = paths.root() / ".fleet" / "rehearsal" / "killed"
    first = subprocess.Popen(words, cwd=paths.root(), env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + HANGING_SECONDS
    # Another rehearsal may be on the bridge until this one has its turn.
    while not (project.is_dir() and state.hosts(program.BRIDGE)):
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.communicate()
    done = subprocess.run(words, cwd=paths.root(), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "processes that a killed run left" in done.stderr
    assert "2 hosts answer with the key of the stack and match their class" in done.stdout
    assert "refused, nothing was touched; protected: gateway-0, main-0" in done.stdout
    assert end_left(project) == 0
    for left in (project, state.lab_dir(program.BRIDGE), Path("/sys/class/net") / program.BRIDGE):
        assert not left.exists(), left
