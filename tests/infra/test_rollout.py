"""Rollouts on real hosts behind two real gateways: what is proven serves, what is not goes back."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import rollout_lab
from driver_lab import DriverLab
from hanging import HANGING_SECONDS
from rollout_lab import (
    BOOK,
    PAIR,
    PLACE,
    accepted,
    batches,
    clients,
    configure_gateways,
    everything_serves,
    look,
    served,
    set_release,
    told,
    up,
)
from stand_in_gates import QUESTIONS

from vllm_fleet.base import paths

pytestmark = [pytest.mark.root, pytest.mark.network]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DriverLab]:
    with rollout_lab.opened(tmp_path_factory.mktemp("rollout")) as found:
        yield found


def test_new_hosts_serve(lab: DriverLab) -> None:
    releases = {name: set_release(lab, name, note="first") for name in PLACE.serving}
    done = lab.playbook(BOOK, batches(["gpu-0"], ["gpu-1", PAIR]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: accepted(lab, name) for name in PLACE.serving} == releases
    kept = json.loads((lab.folder / "references" / "cpu-2--stand-in--first.json").read_text())
    assert kept["logprobs"]
    assert kept["speed"]["tokens_per_second"] > 0
    everything_serves(lab)
    again = lab.playbook(BOOK, batches(PLACE.serving))
    assert again.returncode == 0, again.stdout + again.stderr
    assert set(re.findall(r"changed=(\d+)", again.stdout)) == {"0"}, again.stdout


def test_a_release_is_rolled_out_under_streams_and_loses_none(lab: DriverLab) -> None:
    for name in PLACE.serving:
        set_release(lab, name, note="second")
    with clients(lab) as result:
        done = lab.playbook(BOOK, batches(["gpu-0"], ["gpu-1"], [PAIR]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (result["cut"], result["failed"]) == (0, 0), result
    assert result["whole"] > 100
    assert result["answers"] > 100
    assert set(result["releases"]) == {"first", "second"}
    everything_serves(lab)


def test_instances_of_a_host_follow_each_other(lab: DriverLab) -> None:
    """By systemd's times: the second one stopped after the first had started."""
    set_release(lab, PAIR, note="third")
    done = lab.playbook(BOOK, batches([PAIR]))
    assert done.returncode == 0, done.stdout + done.stderr
    ask = "systemctl show --value --property=ActiveEnterTimestampMonotonic vllm@0; "
    ask += "systemctl show --value --property=InactiveEnterTimestampMonotonic vllm@1"
    started, stopped = map(int, lab.on(PAIR, ask).split())
    assert 0 < started < stopped
    assert [served(lab, PAIR, port) for port in (8000, 8001)] == ["third", "third"]


#: Puts the releases of a host on a small disk without room.
FULL = """
cp -a /opt/vllm/releases /opt/kept
mount -t tmpfs -o size=1M none /opt/vllm/releases
cp -a /opt/kept/. /opt/vllm/releases/
dd if=/dev/zero of=/opt/vllm/releases/full bs=4k 2>/dev/null || true
"""
#: A load that tells 20 % from nothing; on a busy machine it tells nothing, and that does not pass either.
STRICT = {"noise": 0.05, "budget": {"ttft": 0.1, "tokens_per_second": 0.1}, "least_ttft_seconds": 0.02}


@pytest.mark.parametrize(
    ("knob", "says"),
    [
        ("dies=1", "vllm@0.service has not started with release"),
        ("stream=error", "at the gate stream: a stream of /v1/chat/completions ends with an error"),
        ("tools=broken", "at the gate tools: a function was not called as it must be"),
        ("vocabulary=other", "at the gate vocabulary: a text becomes other tokens"),
        ("kernel=TRITON", "at the gate log: vLLM serves, and not as its recipe says: the kernel of the experts"),
        ("numerics=0.5", "at the gate numerics: log-probabilities differ from those of stand-in on cpu-2"),
        ("token_seconds=0.025", "at the gate speed: "),
        ("answers=wrong", "at the gate questions: 1 of 2 questions are answered right"),
    ],
)
def test_a_bad_canary_goes_back_and_nothing_else_is_touched(lab: DriverLab, knob: str, says: str) -> None:
    before = {name: accepted(lab, name) for name in PLACE.serving}
    notes = {name: served(lab, name) for name in PLACE.serving}
    since = lab.on("gpu-1", "systemctl show -P ActiveEnterTimestampMonotonic vllm@0")
    more = {"speed": {**QUESTIONS["speed"], **STRICT}} if knob.startswith("token_seconds") else {}
    bad = {name: set_release(lab, name, knob, note="bad", **more) for name in PLACE.serving}
    with clients(lab, streams=8, kept=8) as result:
        done = lab.playbook(BOOK, batches(["gpu-0"], ["gpu-1", PAIR]))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "gpu-0 serves its last good release, since the new one was refused" in told(done)
    assert says in told(done)
    assert (result["cut"], result["failed"]) == (0, 0), result
    assert "bad" not in result["releases"]
    assert {name: accepted(lab, name) for name in PLACE.serving} == before
    assert {name: served(lab, name) for name in PLACE.serving} == notes
    assert lab.on("gpu-1", "systemctl show -P ActiveEnterTimestampMonotonic vllm@0") == since
    assert bad["gpu-1"] not in lab.on("gpu-1", "ls /opt/vllm/releases"), "it was not even written there"
    failed = json.loads(lab.on("gpu-0", f"cat /opt/vllm/releases/{bad['gpu-0']}/failed.json"))
    assert any("INFO" in line or "RuntimeError" in line for line in failed["logs"]["vllm@0.service"])
    everything_serves(lab)


def test_a_release_that_stays_is_proven_again_where_a_driver_was_changed(lab: DriverLab) -> None:
    """There is no release to go back to, so the host stays out of traffic until it is right."""
    set_release(lab, "gpu-0", note="proven")
    done = lab.playbook(BOOK, batches(["gpu-0"]))
    assert done.returncode == 0, done.stdout + done.stderr
    book = lab.folder / "proof.yml"
    tasks = [{"name": "Prove", "ansible.builtin.include_role": {"name": "vllm_service"}}]
    play = {"name": "Prove", "hosts": "rollout", "become": True, "gather_facts": False, "tasks": tasks}
    book.write_text(json.dumps([play]))
    groups = {**batches(["gpu-0"]), "needs_amd_driver": ("gpu-0",)}
    right = lab.variables["gpu-0"]["vllm_service_gates"]
    lab.variables["gpu-0"]["vllm_service_gates"] = {**right, "questions": [{"ask": "What is 2 + 3?", "answer": "^6$"}]}
    done = lab.playbook(book, {**groups, "rollout": ("gpu-0",)})
    assert done.returncode == 2, done.stdout + done.stderr
    assert "gpu-0 does not serve at the gate questions: 0 of 1 questions are answered right" in told(done)
    for gateway in PLACE.gateways:
        drain = look(lab, gateway)["gpu-0_0"]["drain"]
        assert drain["kind"] == "site"
        assert "gate questions" in drain["reason"]
    lab.variables["gpu-0"]["vllm_service_gates"] = right
    done = lab.playbook(book, {**groups, "rollout": ("gpu-0",)})
    assert done.returncode == 0, done.stdout + done.stderr
    everything_serves(lab)


@contextmanager
def held_up(lab: DriverLab, note: str, start_seconds: int = 30, host: str = "gpu-0") -> Iterator[subprocess.Popen[str]]:
    """A run that is under way: its host is drained, and its release takes a while to start."""
    set_release(lab, host, f"start_seconds={start_seconds}", note=note)
    process = lab.begin(BOOK, batches([host]))
    try:
        deadline = time.monotonic() + HANGING_SECONDS
        while "activating" not in lab.on(host, "systemctl is-active vllm@0 || true"):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def test_two_runs_do_not_touch_the_same_host(lab: DriverLab) -> None:
    with held_up(lab, "slow") as first:
        set_release(lab, "gpu-0", note="another")
        second = lab.playbook(BOOK, batches(["gpu-0"]))
        assert second.returncode == 2
        assert re.search(r"release [0-9a-f]{16} is on trial by \S+@\S+ \(process \d+, started \d+\)", told(second))
        assert first.wait(timeout=HANGING_SECONDS) == 0
    assert served(lab, "gpu-0") == "slow"
    everything_serves(lab)


def test_a_run_that_is_killed_leaves_what_the_next_one_repairs(lab: DriverLab) -> None:
    with held_up(lab, "killed") as process:
        process.send_signal(signal.SIGKILL)
    assert look(lab)["gpu-0_0"]["drained"], "it is out of traffic still"
    set_release(lab, "gpu-0", note="repaired")
    done = lab.playbook(BOOK, batches(["gpu-0"]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert served(lab, "gpu-0") == "repaired"
    everything_serves(lab)


def serves_after(lab: DriverLab, process: subprocess.Popen[str], note: str) -> None:
    """A run that was disturbed ends well, and its release serves."""
    out, err = process.communicate(timeout=HANGING_SECONDS)
    assert process.returncode == 0, out + err
    assert served(lab, "gpu-0") == note
    everything_serves(lab)


def test_an_ssh_session_that_is_lost_between_drain_and_start_is_begun_again(lab: DriverLab) -> None:
    with held_up(lab, "session", start_seconds=6) as process:
        # In a moment, since this session ends too.
        lab.on("gpu-0", "systemd-run --quiet sh -c 'sleep 1; pkill -9 -f \"sshd: deploy\"'")
        serves_after(lab, process, "session")


def test_a_host_whose_network_is_gone_for_a_while_goes_on(lab: DriverLab) -> None:
    with held_up(lab, "network", start_seconds=6) as process:
        drop = "add table inet gone; add chain inet gone all { type filter hook input priority -300; policy drop; }; "
        off = f"sleep 1; nft '{drop}add rule inet gone all iif lo accept'; sleep 15; nft delete table inet gone"
        lab.on("gpu-0", f"systemd-run --quiet sh -c {shlex.quote(off)}")
        serves_after(lab, process, "network")


def test_haproxy_that_is_killed_during_a_rollout_keeps_its_drains(lab: DriverLab) -> None:
    with held_up(lab, "gateway", start_seconds=8) as process:
        lab.on("gateway-0", "systemctl kill --signal=KILL haproxy")
        deadline = time.monotonic() + HANGING_SECONDS
        while lab.on("gateway-0", "systemctl is-active haproxy || true").strip() != "active":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert look(lab)["gpu-0_0"]["drained"], "the host that starts gets no traffic"
        serves_after(lab, process, "gateway")


def test_an_engine_that_is_killed_at_its_start_goes_back(lab: DriverLab) -> None:
    """As the kernel does it when memory is short, with the same signal."""
    before = served(lab, "gpu-1")
    with held_up(lab, "killed-engine", host="gpu-1") as process:
        lab.on("gpu-1", "pkill -9 -f engines/stand-in/bin/vllm")
        out, err = process.communicate(timeout=HANGING_SECONDS)
    assert process.returncode == 2, out + err
    assert "gpu-1 serves its last good release, since the new one was refused" in " ".join((out + err).split())
    assert served(lab, "gpu-1") == before
    everything_serves(lab)


def test_a_start_that_never_ends_goes_back(lab: DriverLab) -> None:
    before = served(lab, "gpu-1")
    set_release(lab, "gpu-1", "start_seconds=3600", note="slow start", patience=3)
    done = lab.playbook(BOOK, batches(["gpu-1"]))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no completion within 3 s: giving up" in done.stdout
    assert served(lab, "gpu-1") == before
    everything_serves(lab)


#: Stands where a program of the project is, and lets it see another time.
OTHER_CLOCK = """#!/usr/bin/python3 -IS
import runpy, time
real = time.time
time.time = lambda: real() + {seconds}
runpy.run_path("{program}.real", run_name="__main__")
"""


@contextmanager
def other_clock(lab: DriverLab, name: str, program: str, days: int) -> Iterator[None]:
    """The program of a host sees a clock that differs: hosts of a lab have one kernel, and so one clock."""
    text = OTHER_CLOCK.format(seconds=days * 86400, program=program)
    lab.on(name, f"cp -a {program} {program}.real && cat > {program} <<'END'\n{text}END\n")
    try:
        yield
    finally:
        lab.on(name, f"mv {program}.real {program}")


def test_clocks_that_differ_by_days_change_nothing(lab: DriverLab) -> None:
    """Each lease is counted on the machine that keeps it; no time of one machine is compared with another's."""
    before = accepted(lab, "gpu-1")
    with (
        other_clock(lab, "gpu-0", "/usr/local/libexec/vllm-release", 2),
        other_clock(lab, "gateway-0", "/usr/local/libexec/vllm-gateway", -2),
        clients(lab, streams=4, kept=4) as result,
    ):
        set_release(lab, "gpu-0", note="another day")
        done = lab.playbook(BOOK, batches(["gpu-0"]))
        assert done.returncode == 0, done.stdout + done.stderr
        assert served(lab, "gpu-0") == "another day"
        set_release(lab, "gpu-0", "tools=broken", note="a bad day")
        refused = lab.playbook(BOOK, batches(["gpu-0"], ["gpu-1"]))
        assert refused.returncode == 2
        assert "serves its last good release, since the new one was refused at the gate tools" in told(refused)
        assert served(lab, "gpu-0") == "another day"
    assert (result["cut"], result["failed"]) == (0, 0), result
    assert accepted(lab, "gpu-1") == before
    everything_serves(lab)


def test_many_failed_starts_do_not_keep_a_good_release_from_starting(lab: DriverLab) -> None:
    """Systemd's limit of starts is over after a few."""
    set_release(lab, "gpu-1", "dies=1", note="dies often")
    for _ in range(2):
        assert lab.playbook(BOOK, batches(["gpu-1"])).returncode == 2
    for _ in range(6):
        lab.on("gpu-1", "systemctl restart vllm@0 || true")
    set_release(lab, "gpu-1", note="good again")
    done = lab.playbook(BOOK, batches(["gpu-1"]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert served(lab, "gpu-1") == "good again"
    everything_serves(lab)


def test_a_host_without_room_on_its_disk_is_not_touched(lab: DriverLab) -> None:
    before = accepted(lab, "gpu-1")
    set_release(lab, "gpu-1", note="no room")
    # The lab's hosts share the disk of the machine: a small one of its own takes its place here.
    lab.on("gpu-1", FULL)
    try:
        done = lab.playbook(BOOK, batches(["gpu-1"]))
    finally:
        lab.on("gpu-1", "umount /opt/vllm/releases; rm -rf /opt/kept")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "No space left on device" in told(done)
    assert accepted(lab, "gpu-1") == before
    everything_serves(lab)
    again = lab.playbook(BOOK, batches(["gpu-1"]))
    assert again.returncode == 0, again.stdout + again.stderr
    everything_serves(lab)


def test_a_host_goes_back_by_itself_when_nobody_comes(lab: DriverLab) -> None:
    """The lease of the host is over first, then that of the gateways; here both are put into the past."""
    before = served(lab, "gpu-0")
    with held_up(lab, "abandoned") as process:
        process.send_signal(signal.SIGKILL)
    past = r"sed -i 's/\"until\": [0-9.]*/\"until\": 1/' "
    lab.on("gpu-0", f"{past} /opt/vllm/trial.json")
    for gateway in PLACE.gateways:
        lab.on(gateway, f"{past} /var/lib/vllm-gateway/drains.json")
    deadline = time.monotonic() + HANGING_SECONDS
    while "trial.json" in lab.on("gpu-0", "ls /opt/vllm") or any(
        status != "UP" for gateway in PLACE.gateways for status in up(lab, gateway).values()
    ):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert served(lab, "gpu-0") == before
    everything_serves(lab)


def test_a_gateway_that_gives_no_answer_keeps_a_host_from_being_touched(lab: DriverLab) -> None:
    before = accepted(lab, "gpu-0")
    set_release(lab, "gpu-0", note="never")
    program = "/usr/local/libexec/vllm-gateway"
    lab.on("gateway-1", f"mv {program} {program}.gone")
    try:
        done = lab.playbook(BOOK, batches(["gpu-0"]))
    finally:
        lab.on("gateway-1", f"mv {program}.gone {program}")
    assert done.returncode == 2
    assert "gpu-0 was not touched, and has its traffic: " in told(done)
    assert accepted(lab, "gpu-0") == before
    everything_serves(lab)


def test_a_cordon_outlives_a_reload_a_restart_and_a_rollout_and_ends_by_command_or_by_its_time(lab: DriverLab) -> None:
    groups = {"gateway": PLACE.gateways}
    words = ("-e", "fleet_drain_host=gpu-1", "-e", "fleet_cordon_hours=1", "-e", "fleet_drain_reason='a new fan'")
    drain, undrain = (paths.root() / "playbooks" / name for name in ("drain.yml", "undrain.yml"))
    done = lab.playbook(drain, groups, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    for action in ("reload", "restart"):
        lab.on("gateway-0", f"systemctl {action} haproxy")
        assert look(lab)["gpu-1_0"]["drained"], action
    configure_gateways(lab)
    assert look(lab)["gpu-1_0"]["drain"]["reason"] == "a new fan", "a run of site.yml leaves a cordon"
    set_release(lab, "gpu-1", note="cordoned")
    done = lab.playbook(BOOK, batches(["gpu-1"]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert served(lab, "gpu-1") == "cordoned"
    assert look(lab)["gpu-1_0"]["drained"], "a rollout leaves a cordon"
    done = lab.playbook(undrain, groups, "-e", "fleet_drain_host=gpu-1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not look(lab)["gpu-1_0"]["drained"]
    lab.playbook(drain, groups, *words)
    for gateway in PLACE.gateways:
        lab.on(gateway, r"sed -i 's/\"until\": [0-9.]*/\"until\": 1/' /var/lib/vllm-gateway/drains.json")
    deadline = time.monotonic() + HANGING_SECONDS
    while any(up(lab, gateway)["gpu-1_0"] != "UP" for gateway in PLACE.gateways):
        assert time.monotonic() < deadline
        time.sleep(1)
    everything_serves(lab)
