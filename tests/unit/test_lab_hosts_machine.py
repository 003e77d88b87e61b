"""What the lab reads from the machine: processes, mounts, nft rules, routes, locks."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hanging import HANGING_SECONDS

from lab import cleanup, network, process, shell, state
from lab.spec import NetworkSpec
from vllm_fleet.base import processes
from vllm_fleet.base.errors import FleetError

SPEC = NetworkSpec("vf-a", "10.70.0.0/24", "/fleets/a", 1)
STAT = "4242 (a (very) odd) name) S 17 4242 4242 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3"


def test_a_process_is_its_number_and_its_start() -> None:
    assert processes.parse_stat(STAT) == processes.Process(pid=4242, started=987654, parent=17)


def test_this_process_is_found_as_it_is() -> None:
    found = processes.find_process(os.getpid())
    assert found is not None
    assert (found.pid, found.parent) == (os.getpid(), os.getppid())


def test_a_process_that_only_waits_for_its_parent_is_gone() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{child.pid}").exists()
    assert processes.find_process(child.pid) is None
    child.wait()


def test_a_number_that_is_used_again_is_left_alone() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        now = processes.find_process(child.pid)
        assert now is not None
        processes.kill_process(processes.Process(now.pid, now.started - 1, now.parent))
        assert child.poll() is None
        processes.kill_process(now)
        assert child.wait() == -signal.SIGKILL
        processes.kill_process(now)
    finally:
        child.kill()


def words(running: list[processes.Process]) -> list[str]:
    """The command lines of processes."""
    return [Path(f"/proc/{each.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip() for each in running]


def until(holds: Callable[[], bool]) -> None:
    """Waits for what a busy machine may take long to do."""
    end = time.monotonic() + HANGING_SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_host_is_found_by_its_folder_alone(tmp_path: Path) -> None:
    mine, other = tmp_path / "a" / "root", tmp_path / "a" / "root2"
    started = [subprocess.Popen(["sh", "-c", "sleep 60; :", "x", f"--directory={folder}"]) for folder in (mine, other)]
    try:
        # Until then a child has the command line of the shell that it comes from.
        for child in started:
            until(lambda pid=child.pid: words(process.host_init([processes.Process(pid, 0, 0)])) == ["sleep 60"])
        found = process.find(mine)
        assert [each.pid for each in found] == [started[0].pid]
        assert [each.parent for each in process.host_init(found)] == [started[0].pid]
    finally:
        for child in started:
            for inside in process.host_init([processes.Process(child.pid, 0, 0)]):
                processes.kill_process(inside)
            child.wait()
    assert process.find(mine) == []


@pytest.mark.parametrize(
    ("files", "roots"),
    [
        (["cgroup.controllers", "cgroup.procs"], ["."]),
        (["systemd/cgroup.procs", "unified/cgroup.procs", "memory/cgroup.procs"], ["systemd", "unified"]),
        (["systemd/cgroup.procs"], ["systemd"]),
        ([], []),
    ],
)
def test_the_cgroup_hierarchies_of_v2_hybrid_and_v1(tmp_path: Path, files: list[str], roots: list[str]) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert process.cgroup_roots(tmp_path) == [tmp_path / root for root in roots]


MOUNTS = """\
1 0 8:1 / / rw - ext4 /dev/a rw
2 1 0:9 / /c/lab/state/a/h/root rw shared:1 - overlay overlay rw
3 2 0:9 / /c/lab/state/a/h/root/proc rw - proc proc rw
4 1 0:9 / /c/lab/state/ab rw - tmpfs tmpfs rw
5 1 0:9 / /c/lab/state/a/with\\040blank rw - tmpfs tmpfs rw
"""


def test_mounts_are_found_deepest_first_and_only_below_the_folder() -> None:
    assert state.mounts_below(Path("/c/lab/state/a"), MOUNTS) == [
        "/c/lab/state/a/with blank",
        "/c/lab/state/a/h/root/proc",
        "/c/lab/state/a/h/root",
    ]


def test_removing_a_folder_that_is_not_there_is_done(tmp_path: Path) -> None:
    state.remove_tree(tmp_path / "nothing")
    (tmp_path / "some" / "thing").mkdir(parents=True)
    state.remove_tree(tmp_path / "some")
    assert list(tmp_path.iterdir()) == []


def test_a_state_file_that_was_cut_short_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "lab.json"
    assert state.read(path) == {}
    path.write_text('{"owner": "/fl', encoding="utf-8")
    assert state.read(path) == {}
    state.write_json(path, {"owner": "/fleets/a"})
    assert state.read(path) == {"owner": "/fleets/a"}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_lock_is_held_by_one_at_a_time_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_FLEET_CACHE", str(tmp_path))
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with state.locked("x"):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert list((tmp_path / "lab").iterdir()) == []


def test_the_list_of_labs_is_what_left_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_FLEET_CACHE", str(tmp_path))
    assert cleanup.status() == []
    state.write_json(state.lab_dir("vf-a") / "lab.json", SPEC.properties())
    state.write_json(state.host_dir("vf-a", "lab-0") / "host.json", {"address": "10.70.0.11"})
    assert [each.record() for each in cleanup.status()] == [
        {"lab": "vf-a", "owner": "/fleets/a", "name": "lab-0", "address": "10.70.0.11", "pids": []}
    ]


def test_nat_is_a_table_of_the_lab_s_own() -> None:
    text = network.ruleset(SPEC)
    assert text.startswith("table ip vllm_fleet_vf_a {}\ndelete table ip vllm_fleet_vf_a\n")
    assert 'ip saddr 10.70.0.0/24 oifname != "vf-a" masquerade' in text


def chain(family: str, table: str, policy: str, hook: str = "forward") -> dict[str, Any]:
    return {"chain": {"family": family, "table": table, "name": "FORWARD", "hook": hook, "policy": policy}}


def test_only_chains_that_drop_forwarded_packets_need_the_lab_s_rule() -> None:
    listing = {
        "nftables": [
            {"metainfo": {}},
            chain("ip", "filter", "drop"),
            chain("inet", "ufw", "drop"),
            chain("ip", "open", "accept"),
            chain("ip6", "filter", "drop"),
            chain("ip", "input", "drop", hook="input"),
        ]
    }
    assert list(network.closed_forward_chains(listing)) == [("ip", "filter", "FORWARD"), ("inet", "ufw", "FORWARD")]


def test_only_the_lab_s_own_rules_are_taken_out_of_others_chains() -> None:
    def rule(handle: int, comment: str | None) -> dict[str, Any]:
        known = {"family": "ip", "table": "filter", "chain": "FORWARD", "handle": handle}
        return {"rule": {**known, **({"comment": comment} if comment else {})}}

    listing = {"nftables": [rule(1, None), rule(2, "vllm-fleet lab vf-a"), rule(3, "vllm-fleet lab vf-ab")]}
    assert list(network.own_rules(listing, "vf-a")) == [("ip", "filter", "FORWARD", 2)]


@pytest.mark.parametrize(
    ("routes", "found"),
    [
        ([{"dst": "default", "dev": "eth0"}, {"dst": "192.0.2.0/24", "dev": "eth0"}], None),
        ([{"dst": "10.70.0.0/24", "dev": "vf-a"}, {"dst": "10.70.0.1", "dev": "vf-a"}], None),
        ([{"dst": "10.0.0.0/8", "dev": "eth0"}], ("10.0.0.0/8", "eth0")),
        ([{"dst": "10.70.0.128/25", "dev": "docker0"}], ("10.70.0.128/25", "docker0")),
        ([{"dst": "10.70.0.9", "dev": "tun0"}], ("10.70.0.9/32", "tun0")),
        ([{"type": "blackhole", "dst": "10.0.0.0/8"}], None),
    ],
)
def test_a_subnet_of_somebody_else_is_seen(routes: list[dict[str, str]], found: tuple[str, str] | None) -> None:
    assert network.overlaps(ipaddress.IPv4Network("10.70.0.0/24"), "vf-a", routes) == found


def test_a_tool_that_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell.os, "geteuid", lambda: 0)
    monkeypatch.setattr(shell.shutil, "which", lambda tool, **_: None if tool in ("nft", "systemd-nspawn") else tool)
    with pytest.raises(FleetError, match="not installed: nft, systemd-nspawn") as fault:
        shell.require()
    assert fault.value.hint == "apt-get install nftables systemd-container"
    assert fault.value.exit_code == 2


def test_without_root_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell.os, "geteuid", lambda: 1000)
    with pytest.raises(FleetError, match="needs root") as fault:
        network.create(SPEC)
    assert fault.value.exit_code == 2


def test_a_tool_that_fails_is_quoted() -> None:
    with pytest.raises(FleetError, match="'sh -c echo no >&2; exit 3' failed: no") as fault:
        shell.run("sh", "-c", "echo no >&2; exit 3")
    assert fault.value.exit_code == 1


def test_the_records_of_the_state_are_plain_json() -> None:
    assert json.loads(json.dumps(SPEC.properties())) == SPEC.properties()
