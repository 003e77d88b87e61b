"""Rollouts on real hosts as commands drive them: the record, a pause, Ctrl-C, and the way back."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import rollout_lab
from driver_lab import DriverLab
from hanging import HANGING_SECONDS
from rollout_lab import BOOK, PAIR, accepted, batches, everything_serves, served, set_release

from vllm_fleet.base.errors import FleetError
from vllm_fleet.cli import rollback as rollback_command
from vllm_fleet.fleet.batches import Member
from vllm_fleet.operate.rollout import record, rollback
from vllm_fleet.operate.rollout.hosts import host_of_variables
from vllm_fleet.operate.rollout.record import (
    BatchBegun,
    Counted,
    Ended,
    InstanceStarted,
    Outcome,
    PhaseEnded,
    ReleaseChange,
    Run,
)
from vllm_fleet.schema.rollout import Rollout

pytestmark = [pytest.mark.root, pytest.mark.network]
PLACE = rollout_lab.place_at("vf-rollcmd", "10.79.22")
FLEET = f"test-{PLACE.bridge}"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DriverLab]:
    shutil.rmtree(record.folder(FLEET).parent, ignore_errors=True)
    with rollout_lab.opened(tmp_path_factory.mktemp("rollout"), PLACE) as found:
        yield found
    shutil.rmtree(record.folder(FLEET).parent, ignore_errors=True)


def release(lab: DriverLab, note: str, *knobs: str, hosts: tuple[str, ...] = PLACE.serving) -> None:
    for name in hosts:
        set_release(lab, name, *knobs, note=note)
        lab.variables[name]["fleet_name"] = FLEET


def newest() -> list[record.Event]:
    return record.read_record(record.list_records(FLEET)[0])


def test_a_plain_run_of_the_playbook_keeps_a_record(lab: DriverLab) -> None:
    release(lab, "first")
    done = lab.playbook(BOOK, batches(["gpu-0"], ["gpu-1", PAIR]))
    assert done.returncode == 0, done.stdout + done.stderr
    events = newest()
    run, end = events[0], events[-1]
    assert isinstance(run, Run)
    assert run.hosts == list(PLACE.serving)
    assert isinstance(end, Ended)
    assert end.state == "done"
    phases = [(event.host, event.phase) for event in events if isinstance(event, PhaseEnded)]
    assert [phase for host, phase in phases if host == "gpu-0"] == [
        *("begin", "room", "drain", "measure", "stop", "restore", "start"),
        *("gates", "gates", "gates", "keep", "accept", "ready"),
    ]
    outcomes = {event.host: event for event in events if isinstance(event, Outcome)}
    assert {name: outcome.state for name, outcome in outcomes.items()} == dict.fromkeys(PLACE.serving, "serving")
    assert outcomes["gpu-0"].seconds["0"] > 0
    starts = [event for event in events if isinstance(event, InstanceStarted)]
    assert [event.instance for event in starts if event.host == PAIR] == ["0", "1"]
    assert all(event.steps == {"weights_seconds": 0.25} for event in starts)
    counted = [event for event in events if isinstance(event, Counted)]
    assert {(event.gateway, event.batch_ends) for event in counted} == {
        (name, ends) for name in PLACE.gateways for ends in (False, True)
    }
    assert all("hrsp_5xx" in figures for event in counted for figures in event.backends.values())
    everything_serves(lab)


def test_the_record_of_a_refused_host_has_the_gate_the_log_and_the_changed_lines(lab: DriverLab) -> None:
    release(lab, "bad", "tools=broken")
    done = lab.playbook(BOOK, batches(["gpu-0"], ["gpu-1", PAIR]))
    assert done.returncode == 2, done.stdout + done.stderr
    events = newest()
    (outcome,) = (event for event in events if isinstance(event, Outcome))
    assert (outcome.host, outcome.state, outcome.gate) == ("gpu-0", "returned", "tools")
    (change,) = (event for event in events if isinstance(event, ReleaseChange))
    assert [line for line in change.lines if line.startswith(("+#", "-#"))] == [
        "-# knob: release=first",
        "+# knob: release=bad",
        "+# knob: tools=broken",
    ]
    assert isinstance(events[-1], Ended)
    assert events[-1].state == "refused"
    assert "at the gate tools" in events[-1].why
    everything_serves(lab)


#: Runs the playbook as 'vllm-fleet rollout' does, with the inventory of the lab.
DRIVE = """
import sys
from pathlib import Path
from vllm_fleet.cli import rollout
from vllm_fleet.operate.rollout import run
folder, book, fleet, *arguments = sys.argv[1:]
order = run.Order(fleet, Path(folder) / "hosts.yml", Path(book), arguments)
rollout.follow(lambda listener: run.drive(order, listener), json=False, check=False)
"""


def drive(lab: DriverLab, *arguments: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", DRIVE, str(lab.folder), str(BOOK), FLEET, *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(process: subprocess.Popen[str], text: str) -> None:
    """Reads the output of a run up to a line."""
    assert process.stdout
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(text)


def test_a_rollout_pauses_after_the_canary_and_goes_on_when_it_is_run_again(lab: DriverLab) -> None:
    before = accepted(lab, "gpu-1")
    release(lab, "second")
    lab.write_inventory(batches(["gpu-0"], ["gpu-1", PAIR]))
    paused = drive(lab, "-e", "fleet_rollout_pause_after=canary")
    out, _ = paused.communicate(timeout=HANGING_SECONDS)
    assert paused.returncode == 0, out
    assert "1 of 3 hosts serve the release, 2 are left as they are" in out
    assert [served(lab, name) for name in ("gpu-0", "gpu-1", PAIR)] == ["second", "first", "first"]
    assert accepted(lab, "gpu-1") == before
    everything_serves(lab)
    assert record.find_unfinished(FLEET)
    again = drive(lab)
    out, _ = again.communicate(timeout=HANGING_SECONDS)
    assert again.returncode == 0, out
    assert "3 of 3 hosts serve the release" in out
    assert record.find_unfinished(FLEET) is None
    everything_serves(lab)


def test_ctrl_c_ends_a_rollout_after_the_batch_in_work(lab: DriverLab) -> None:
    release(lab, "third")
    lab.write_inventory(batches(["gpu-0"], ["gpu-1", PAIR]))
    process = drive(lab)
    until(process, "batch 1: gpu-0")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=HANGING_SECONDS)
    assert "interrupted after the batch in work" in out
    assert [served(lab, name) for name in ("gpu-0", "gpu-1")] == ["third", "second"]
    everything_serves(lab)


def test_ctrl_c_twice_ends_it_at_once_and_the_next_one_goes_on(lab: DriverLab) -> None:
    release(lab, "fourth", "start_seconds=20", hosts=("gpu-0",))
    lab.write_inventory(batches(["gpu-0"], ["gpu-1", PAIR]))
    process = drive(lab)
    until(process, "batch 1: gpu-0")
    deadline = time.monotonic() + HANGING_SECONDS
    while "activating" not in lab.on("gpu-0", "systemctl is-active vllm@0 || true"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    until(process, "press Ctrl-C again")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=HANGING_SECONDS)
    assert "hosts that were at work go back to their last good release by themselves" in out
    assert record.find_unfinished(FLEET)
    release(lab, "fourth")
    lab.write_inventory(batches(["gpu-0"], ["gpu-1", PAIR]))
    again = drive(lab)
    out, _ = again.communicate(timeout=HANGING_SECONDS)
    assert again.returncode == 0, out
    assert [served(lab, name) for name in PLACE.serving] == ["fourth"] * 3
    everything_serves(lab)


def go_back(lab: DriverLab, *names: str) -> rollback.Order:
    hosts = [
        host_of_variables(name, {**lab.variables[name], "gateway_traffic_gateways": list(PLACE.gateways)}, {})
        for name in names
    ]
    members = [Member(name, "a line", "stand-in", name in names, False) for name in PLACE.serving]
    targets = {name: lab.target(name) for name in PLACE.addresses}
    return rollback.Order(FLEET, hosts, members, targets, Rollout())


def test_a_rollback_is_a_switch_under_streams_and_loses_no_request(
    lab: DriverLab, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [served(lab, name) for name in PLACE.serving]
    release(lab, "worse")
    done = lab.playbook(BOOK, batches(["gpu-0"], ["gpu-1", PAIR]))
    assert done.returncode == 0, done.stdout + done.stderr
    with rollout_lab.clients(lab, streams=8, kept=8) as result:
        rollback_command.follow(go_back(lab, *PLACE.serving), json=False)
    out = capsys.readouterr()
    assert (result["cut"], result["failed"]) == (0, 0), result
    assert "3 of 3 hosts serve the release" in out.out
    assert "gpu-0: serving (0 started in " in out.out
    assert "the next site.yml brings the newer release again" in out.err
    assert [served(lab, name) for name in PLACE.serving] == before
    batched = [event.hosts for event in newest() if isinstance(event, BatchBegun)]
    assert batched == [["gpu-0"], ["gpu-1"], [PAIR]], "a quarter of three hosts is one"
    rollback_command.follow(go_back(lab, "gpu-0"), json=False)
    assert served(lab, "gpu-0") == "worse", "a second one undoes the first"
    everything_serves(lab)


def test_a_host_without_an_earlier_release_is_refused_before_anything_is_touched(lab: DriverLab) -> None:
    lab.on("gpu-1", "mkdir /root/kept; mv /opt/vllm/releases /root/kept; mkdir /opt/vllm/releases")
    lab.on("gpu-1", "cp -a /root/kept/releases/$(basename $(readlink /opt/vllm/accepted)) /opt/vllm/releases/")
    before = served(lab, "gpu-0")
    try:
        with pytest.raises(FleetError, match="has no earlier release") as fault:
            rollback_command.follow(go_back(lab, "gpu-0", "gpu-1"), json=False)
    finally:
        lab.on("gpu-1", "rm -r /opt/vllm/releases; mv /root/kept/releases /opt/vllm/; rmdir /root/kept")
    assert (fault.value.exit_code, fault.value.host, fault.value.others) == (2, "gpu-1", [])
    assert served(lab, "gpu-0") == before
    everything_serves(lab)
