"""The benchmark's pure parts, and that its accounting of processes is true."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bench import contenders, fleets, measure, peers, report, results
from bench.measure import Sample
from bench.results import Row
from vllm_fleet import inventory
from vllm_fleet.base.errors import FleetError
from vllm_fleet.host.manifest_items import FileItem, file_item, sysctl_item

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBenchBenchBenchBenchBenchBenchBenchBenchBen"


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    return fleets.write(tmp_path / "fleets", 3, HOST_KEY, tmp_path / "id")


@pytest.fixture
def parent_of_orphans() -> Iterator[None]:
    measure.adopt_orphans()
    yield
    measure.adopt_orphans(False)


def rows(*found: tuple[str, int, float, float]) -> list[Row]:
    return [Row(name, hosts, (Sample(wall, controller, wall, 0.0),)) for name, hosts, wall, controller in found]


@pytest.mark.parametrize(
    ("number", "address"), [(1, "127.0.1.1"), (250, "127.0.1.250"), (251, "127.0.2.1"), (1000, "127.0.4.250")]
)
def test_addresses(number: int, address: str) -> None:
    assert fleets.address(number) == address


@pytest.mark.parametrize("number", [0, 1001])
def test_there_are_no_more_addresses(number: int) -> None:
    with pytest.raises(ValueError, match="1 to 1000"):
        fleets.address(number)


def test_the_fleet_is_one_of_the_project(fleet: Path) -> None:
    found = inventory.load(fleet)
    assert [(host.plan.name, host.location.address) for host in found.hosts] == [
        (f"gw-00{number}", f"127.0.1.{number}") for number in (1, 2, 3)
    ]
    assert {host.location.user for host in found.hosts} == {fleets.USER}
    assert found.known_hosts == (fleet / "known_hosts").read_text()


def test_all_hosts_have_one_manifest(fleet: Path) -> None:
    hosts = inventory.load(fleet).hosts
    assert all(host.manifest.items == hosts[0].manifest.items for host in hosts)


def test_peers_check_every_item(fleet: Path) -> None:
    items = inventory.load(fleet).hosts[0].manifest.items
    copies = {item["path"]: Path("/copies") / str(number) for number, item in enumerate(items) if "path" in item}
    found = peers.checks(items, copies)
    packages = [item for item in items if item["kind"] == "package"]
    left_out = [item for item in items if item["kind"] in peers.LEFT_OUT]
    assert [item["kind"] for item in left_out] == ["traffic", "keys"]
    assert len(found) == len(items) - len(packages) + 1 - len(left_out)
    assert found[0].arguments["name"] == [item["name"] for item in packages]
    assert {each.module for each in found} == {"apt", "user", "file", "copy", "systemd_service"}


def test_an_unknown_kind_is_not_left_out() -> None:
    with pytest.raises(FleetError, match="sysctl"):
        peers.checks([sysctl_item("r", "a.b", "1")], {})


def test_a_file_of_unknown_content_is_not_left_out() -> None:
    with pytest.raises(FleetError, match="file"):
        peers.checks([FileItem(role="r", kind="file", path="/a", mode="0755")], {"/a": Path("/copy")})


def test_only_what_was_deployed_is_compared(tmp_path: Path) -> None:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/a").write_text("content")
    item = file_item("r", "/etc/a", hashlib.sha256(b"content").hexdigest())
    copies = peers.copy_files([item], tmp_path / "root", tmp_path / "copies")
    assert copies["/etc/a"].read_text() == "content"
    (tmp_path / "root/etc/a").write_text("other")
    with pytest.raises(FleetError, match="differs from its manifest"):
        peers.copy_files([item], tmp_path / "root", tmp_path / "again")


def test_texts_of_the_peers_are_of_their_kind(fleet: Path) -> None:
    items = inventory.load(fleet).hosts[0].manifest.items
    found = peers.checks(items, {item["path"]: Path("/copy") for item in items if "path" in item})
    (play,) = yaml.safe_load(peers.playbook_text(found))
    assert len(play["tasks"]) == len(found)
    calls = [node for node in ast.walk(ast.parse(peers.pyinfra_deploy_text(found))) if isinstance(node, ast.Call)]
    assert len(calls) == len(found)
    assert all(any(keyword.arg == "_sudo" for keyword in call.keywords) for call in calls)


def test_inventories_of_the_peers_check_host_keys() -> None:
    ansible = yaml.safe_load(peers.ansible_inventory_text(fleets.addresses(2), Path("/key"), Path("/known")))
    assert "StrictHostKeyChecking=yes" in ansible["all"]["vars"]["ansible_ssh_common_args"]
    assert ansible["all"]["hosts"]["gw-002"] == {"ansible_host": "127.0.1.2"}
    names: dict[str, list[tuple[str, dict[str, str]]]] = {}
    text = peers.pyinfra_inventory_text(fleets.addresses(2), Path("/key"), Path("/known"))
    exec(compile(text, "inventory", "exec"), names)  # noqa: S102
    assert names["hosts"][1][0] == "gw-002"
    assert names["hosts"][1][1]["ssh_hostname"] == "127.0.1.2"
    assert names["hosts"][1][1]["ssh_strict_host_key_checking"] == "yes"


RECAP = "{} : ok=12   changed={}    unreachable={}    failed=0    skipped=0    rescued=0    ignored=0\n"


@pytest.mark.parametrize(
    ("output", "counts"),
    [
        (RECAP.format("a", 0, 0) + RECAP.format("b", 0, 0), True),
        (RECAP.format("a", 0, 0) + RECAP.format("b", 1, 0), False),
        (RECAP.format("a", 0, 0) + RECAP.format("b", 0, 1), False),
        (RECAP.format("a", 0, 0), False),
        ("", False),
    ],
)
def test_a_run_of_tasks_counts_when_all_hosts_were_clean(output: str, counts: bool) -> None:
    assert (contenders.ansible_fault(2, output) is None) is counts


@pytest.mark.parametrize(
    ("changed", "drift", "counts"),
    [
        (0, '{"hosts": {"a": [], "b": []}}', True),
        (1, '{"hosts": {"a": [], "b": []}}', False),
        (0, '{"hosts": {"a": []}}', False),
        (0, '{"hosts": {"a": [], "b": [{}]}}', False),
    ],
)
def test_a_run_of_site_counts_when_all_hosts_were_probed(
    changed: int, drift: str, counts: bool, tmp_path: Path
) -> None:
    (tmp_path / "drift.json").write_text(drift)
    found = contenders.site_fault(2, RECAP.format("a", changed, 0), tmp_path / "drift.json")
    assert (found is None) is counts


def test_a_run_of_drift_counts_when_all_hosts_were_clean() -> None:
    assert contenders.drift_fault(2, '{"fleet": "f", "hosts": 2, "drift": []}') is None
    assert contenders.drift_fault(2, '{"fleet": "f", "hosts": 1, "drift": []}')
    assert contenders.drift_fault(2, '{"fleet": "f", "hosts": 2, "drift": [{}]}')


@pytest.mark.parametrize(
    ("total", "counts"),
    [
        ("60      -         -       60", True),
        ("60      1         -       59", False),
        ("50      -         -       50", False),
    ],
)
def test_a_run_of_pyinfra_counts_when_nothing_changed(total: str, counts: bool) -> None:
    output = f"    unit x        10      -         -       10\n    Grand total   {total}          \n"
    assert (contenders.pyinfra_fault(10, 6, output) is None) is counts


def test_figures_of_a_row() -> None:
    row = Row("x", 100, (Sample(4, 1.0, 7, 0, 0.1), Sample(6, 2.0, 9, 3, 0.2), Sample(5, 1.5, 8, 0, 0)))
    assert (row.wall, row.wall_range, row.controller_per_host, row.target_per_host) == (5, (4, 6), 15, 80)
    assert row.load == 0.5


def test_a_target_that_was_not_counted_is_not_zero() -> None:
    row = Row("x", 100, (Sample(4, 1.0, None, 0), Sample(6, 2.0, 9, 0)))
    assert row.target is None
    assert row.record()["target_cpu_ms_per_host"] is None


def test_growth_splits_the_fixed_part_off() -> None:
    (found,) = results.growths(rows(("x", 100, 5, 1.5), ("x", 300, 13, 3.5)), [100, 300])
    assert found.controller_ms_per_added_host == pytest.approx(10)
    assert found.controller_fixed == pytest.approx(0.5)
    assert found.wall_factor == pytest.approx(2.6)
    assert found.wall_at(200) == pytest.approx(9)


def test_growth_is_between_the_sizes_that_were_asked_for() -> None:
    found = results.growths(
        rows(("x", 10, 1, 1), ("x", 100, 5, 1), ("x", 300, 13, 3), ("slow", 10, 60, 9), ("slow", 30, 160, 27)),
        [100, 300],
    )
    assert [(each.name, each.few.hosts, each.many.hosts) for each in found] == [("x", 100, 300), ("slow", 10, 30)]
    assert report.extrapolations(found) == [
        "slow: about 510 s for 100 hosts (the straight line through 10 and 30 hosts, not measured)"
    ]


def test_steps_are_told_one_by_one() -> None:
    parts = rows(("login", 100, 2, 0), ("sudo", 100, 3, 0), ("probe", 100, 7, 0))
    assert results.differences(parts) == [("login", 20), ("sudo", 10), ("probe", 40)]


def test_goals_tell_by_how_much_they_were_missed() -> None:
    assert report.goals(rows((contenders.SITE, 100, 9.5, 0.9), (contenders.PYINFRA, 100, 19.0, 6))) == [
        "100 unchanged hosts in 0.2 x the time of pyinfra in the same run: **missed by 0.30**, 0.50 x",
        "100 unchanged hosts in 0.16 x its controller CPU: reached, 0.15 x",
    ]


def test_goals_without_the_peer_of_the_run_are_not_judged() -> None:
    assert report.goals(rows((contenders.SITE, 100, 1, 1))) == []


def test_ratios_to_the_peer_come_before_seconds() -> None:
    head, _, own, _ = report.table(rows((contenders.SITE, 100, 5, 1.5), (contenders.PYINFRA, 100, 20, 6)))
    assert head.index("of pyinfra's time") < head.index("[s]")
    assert own.split("|")[3:6] == [f"{'0.25 x':>18} ", f"{'0.25 x':>22} ", f"{'5.0':>19} "]


def test_goals_are_not_judged_on_other_numbers_of_hosts() -> None:
    assert report.goals(rows((contenders.SITE, 10, 1, 1))) == []


def test_the_document_has_all_of_it() -> None:
    found = report.Report(
        sizes=[100, 300],
        rows=rows(
            (contenders.SITE, 100, 5, 1.4),
            (contenders.PYINFRA, 100, 30, 9),
            (contenders.DRIFT, 100, 4, 0.8),
            (contenders.SITE, 300, 14, 2.5),
            (contenders.DRIFT, 300, 12, 1.8),
            (contenders.STOCK, 10, 60, 18),
            (contenders.STOCK, 30, 180, 54),
        ),
        parts=rows(("login", 100, 2, 0)),
        machine={"processors": "2"},
        checks=12,
    )
    text = report.document(found)
    for title in ("Goals", "Growth", "Where the time goes", "The machine of the other tables"):
        assert f"\n## {title}\n" in text
    assert "the same 12 checks" in text
    assert "about 600 s for 100 hosts" in text
    assert "| processors | 2" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith(("|", "-"))) <= 120


def test_the_target_is_counted_above_its_payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = tmp_path / "proc-cgroup"
    process.write_text("1:cpu:/\n0::/lab/vf-bench/payload/init.scope\n")
    group = tmp_path / "unified/lab/vf-bench"
    group.mkdir(parents=True)
    (group / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1000000\n")
    monkeypatch.setattr(measure, "_cgroup_file", lambda _pid: process)
    file = measure.cpu_stat(7, tmp_path)
    assert file == group / "cpu.stat"
    assert measure.usage_seconds(file.read_text()) == 1.5
    process.write_text("1:cpu:/lab\n")
    assert measure.cpu_stat(7, tmp_path) is None


def test_idle_time_is_not_busy_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.os, "sysconf", lambda _name: 100)
    assert measure.busy_seconds("cpu  100 10 50 9999 888 5 35 7 0 0\ncpu0 1 1 1 1 1 1 1\n") == 2.0


@pytest.mark.usefixtures("parent_of_orphans")
def test_what_a_command_leaves_running_is_counted_and_ended(tmp_path: Path) -> None:
    burn = "import os; [os.times() for _ in range(300000)]"
    script = f'setsid python3 -c "{burn}" & wait; (setsid sleep 600 &) ; echo $$ > {tmp_path}/done'
    code, sample = measure.run(["sh", "-c", script], {"PATH": "/usr/bin:/bin"}, tmp_path, tmp_path / "log", 60, [])
    assert code == 0
    assert (tmp_path / "done").exists()
    assert sample.controller > 0
    assert sample.target is None
    assert "600" not in _command_lines_of_children()


def test_a_command_that_does_not_end_is_ended(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="did not end within"):
        measure.run(["sleep", "601"], {"PATH": "/usr/bin:/bin"}, tmp_path, tmp_path / "log", 0.2, [])
    assert "601" not in _command_lines_of_children()


def _command_lines_of_children() -> set[str]:
    words: set[str] = set()
    for pid in measure._children():
        words |= set(Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0"))
    return words
