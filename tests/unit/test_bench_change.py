"""The benchmark of changes: its hosts and peers as text, what makes a run count, and its section of the document."""

from __future__ import annotations

import ast
import hashlib
import os
from pathlib import Path

import pytest
import yaml

from bench import change, change_peers, change_report, contenders, lab_fleet, load, measure
from bench.lab_fleet import Access
from bench.measure import Sample
from bench.results import Row
from vllm_fleet.base.errors import FleetError
from vllm_fleet.host.manifest_items import Item, file_item, item_name, package_item, unit_item, user_item

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBenchBenchBenchBenchBenchBenchBenchBenchBen"
ITEMS: list[Item] = [
    package_item("host_baseline", "nftables"),
    user_item("host_baseline", "vllm", "/var/lib/vllm", "/usr/sbin/nologin"),
    file_item("vllm_firewall", "/etc/systemd/system/vllm@.service.d/addresses.conf", "0" * 64),
    file_item("vllm_engine", "/opt/vllm/engines/e/.complete", "0" * 64),
    file_item("vllm_service", "/run/vllm-0/loaded", "0" * 64),
    unit_item("vllm_service", "vllm@0.service", active=True, enabled=True),
]


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(tmp_path / "id", HOST_KEY, "private", HOST_KEY)


@pytest.mark.parametrize(
    ("name", "address"),
    [(lab_fleet.GATEWAY, "10.79.64.2"), ("serve-001", "10.79.64.11"), ("serve-300", "10.79.65.54")],
)
def test_each_host_has_an_address_of_its_own(name: str, address: str) -> None:
    assert lab_fleet.address(name) == address


def test_the_fleet_has_the_value_that_a_change_changes(access: Access) -> None:
    text = yaml.safe_load(lab_fleet.fleet_text("f", lab_fleet.names(2), access, 17))
    assert text["pools"]["serve"]["overrides"]["args"] == {lab_fleet.ARGUMENT: 17}
    assert list(text["pools"]["serve"]["static"]) == ["serve-001", "serve-002"]
    assert set(text["rollout"]["waive"]) == set(lab_fleet.WAIVED)


def test_more_hosts_than_fit_into_the_memory_are_not_booted() -> None:
    room = lab_fleet.largest_fleet("MemTotal: 99 kB\nMemAvailable:   16384000 kB\n")
    assert room == (16000 - 4096) // lab_fleet.HOST_MIB
    assert change.fitting_sizes([100, 300], room) == [100, room]
    assert change.fitting_sizes([100, 300], 1000) == [100, 300]
    assert lab_fleet.largest_fleet("MemAvailable: 1024 kB\n") == 0
    with pytest.raises(FleetError, match="too little memory"):
        change.fitting_sizes([100], 0)


def test_peers_set_up_what_is_not_given_to_all() -> None:
    items = change_peers.items_of_new_host(ITEMS)
    assert [item["kind"] for item in items] == ["package", "user", "file", "unit"]
    copies = {item_name(item): Path("/copies") / change_peers.HOST / "0" for item in items}
    checks = change_peers.new_host(items, copies)
    # An account's groups come before it, and a directory before its file.
    assert [check.module for check in checks] == ["apt", "group", "group", "user", "file", "copy", "systemd_service"]
    assert checks[-1].arguments["daemon_reload"] is True
    (play,) = yaml.safe_load(change_peers.playbook_text(checks))
    assert play["tasks"][5]["ansible.builtin.copy"]["src"] == "/copies/{{ inventory_hostname }}/0"
    text = change_peers.pyinfra_text(checks)
    assert "src='/copies/@HOST@/0'.replace('@HOST@', host.name)" in text
    ast.parse(text)


def test_peers_restart_only_after_a_change() -> None:
    copy = Path("/copies") / change_peers.HOST
    (play,) = yaml.safe_load(change_peers.change_playbook_text(copy))
    assert play["tasks"][1]["when"] == "config is changed"
    text = change_peers.change_pyinfra_text(copy)
    assert "_if=config.did_change" in text
    ast.parse(text)


def host(root: Path, text: str, loaded: str | None = None) -> Path:
    files = {
        lab_fleet.CONFIG.lstrip("/"): text,
        "run/vllm-0/loaded": f"{loaded or hashlib.sha256(text.encode()).hexdigest()} env\n",
        "run/vllm-0/started": "0.5\n",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    os.utime(root / "run/vllm-0/started", ns=(1000, 1000))
    return root


@pytest.mark.parametrize(
    ("text", "loaded", "since", "fault"),
    [
        ("a: 1\nmax-num-seqs: 17\nz: 1\n", None, 999, None),
        ("a: 1\nmax-num-seqs: 16\nz: 1\n", None, 999, "does not have the value 17"),
        ("a: 1\nmax-num-seqs: 17\nz: 1\n", "0" * 64, 999, "runs with another file than it has"),
        ("a: 1\nmax-num-seqs: 17\nz: 1\n", None, 1000, "was not restarted"),
    ],
)
def test_a_run_counts_when_every_host_answers_with_the_new_file(
    text: str, loaded: str | None, since: int, fault: str | None, tmp_path: Path
) -> None:
    assert change.host_fault(host(tmp_path, text, loaded), 17, since) == fault


def test_a_host_without_an_instance_does_not_count(tmp_path: Path) -> None:
    assert "has no" in str(change.host_fault(tmp_path, 17, 0))


def test_the_copies_of_peers_have_the_value() -> None:
    assert change.with_value("a: 1\nmax-num-seqs: 16\nz: 1\n", 17) == "a: 1\nmax-num-seqs: 17\nz: 1\n"


def row(name: str, hosts: int, wall: float, controller: float, *, quiet: float | None = 0.0) -> Row:
    return Row(name, hosts, (Sample(wall, controller, wall, quiet, quiet),))


def test_slow_peers_run_on_few_hosts_beside_pyinfra() -> None:
    slow = [contenders.TUNED, contenders.STOCK]
    turns = change.slow_turns(change_report.CHANGE, 100)
    assert turns == [(count, name) for count in (10, 30) for name in (contenders.PYINFRA, *slow)]
    assert change.slow_turns(change_report.NEW, 4) == [(4, name) for name in slow]


def test_goals_are_ratios_to_the_peer_of_the_same_run() -> None:
    rows = [row(contenders.SITE, 100, 60, 40), row(contenders.PYINFRA, 100, 100, 9)]
    assert change_report.goals(change_report.CHANGE, rows) == [
        "100 hosts in 0.5 x the time of pyinfra in the same run: **missed**, 0.60 x",
        "rolling 100 hosts with 0.5 s of controller CPU for each: reached, 0.40 s",
    ]
    assert change_report.goals(change_report.NEW, rows) == [
        "100 hosts in 1 x the time of pyinfra in the same run: reached, 0.60 x"
    ]
    assert change_report.goals(change_report.NEW, rows[:1]) == []


def test_the_section_says_what_was_waived_and_what_did_not_fit() -> None:
    rows = {
        change_report.CHANGE: [
            row(contenders.SITE, 100, 60, 40),
            row(contenders.PYINFRA, 100, 100, 9),
            row(contenders.STOCK, 10, 20, 9),
            row(contenders.STOCK, 30, 60, 27),
        ],
        change_report.NEW: [],
    }
    blocks = change_report.section(change_report.Report(rows, 40, 250, (300,)))
    text = " ".join(" ".join(block) for block in blocks)
    assert blocks[0] == [change_report.TITLE]
    assert "300 hosts do not fit into the memory of this machine: 250 do" in text
    assert all(gate in text for gate in lab_fleet.WAIVED)
    assert "about 200 s for 100 hosts" in text
    assert "A new fleet" not in text


@pytest.mark.parametrize(
    ("loads", "text"),
    [
        ([0.0, 0.05], "Nothing else ran on the machine: other programs took at most 0.05 processors"),
        ([0.0, 1.25], "Other programs took up to 1.2 processors"),
        ([0.0, None], "was not measured"),
        ([], "was not measured"),
    ],
)
def test_nothing_else_ran_only_where_it_was_measured(loads: list[float | None], text: str) -> None:
    assert text in load.describe_load(load.worst(loads))


@pytest.mark.parametrize(("others", "before"), [(None, 0.0), (0.0, None)])
def test_a_sample_without_a_measured_load_has_none(others: float | None, before: float | None) -> None:
    assert Sample(2.0, 1.0, 1.0, others, before).load is None


def test_the_load_before_a_run_counts() -> None:
    assert Sample(2.0, 1.0, 1.0, 0.2, 0.5).load == 0.5


def test_what_targets_use_is_not_the_load_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "cpu.stat"
    stat.write_text("usage_usec 0\n")
    busy = iter([10.0, 12.0])
    monkeypatch.setattr(measure, "machine_seconds", lambda: next(busy))
    monkeypatch.setattr("time.sleep", lambda _seconds: stat.write_text("usage_usec 2000000\n"))
    assert measure.busy_processors([stat]) == 0.0
