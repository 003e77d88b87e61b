"""The regions of a fleet with workers: what fleet.yml can say, which hosts a run has, and what a worker leaves."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hanging import HANGING_SECONDS

from vllm_fleet import inventory as sites
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.private_keys import has_passphrase
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import rollout
from vllm_fleet.fleet import plan as plans
from vllm_fleet.fleet import private_key, region_workers
from vllm_fleet.inventory import Site
from vllm_fleet.on_host import run_worker
from vllm_fleet.operate.rollout import order, regions
from vllm_fleet.operate.rollout.record import BatchBegun, Counted, Run
from vllm_fleet.operate.rollout.timeline import Timeline

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIPZbIJrWDJY/rZsXHNmWBMAHIHMMXqvoHuxmNVzWNyE"


def worker(*pools: str, number: int = 1) -> dict[str, Any]:
    return {"address": f"10.0.{number}.2", "ssh_host_key": KEY, "pools": list(pools)}


def write(fleets: Path, workers: dict[str, Any], **more: Any) -> Path:
    file = fleets / "golden" / "fleet.yml"
    spec = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump({**spec, "workers": workers, **more}), encoding="utf-8")
    return file.parent


def test_the_first_region_has_the_gateways_and_each_its_own_pools(fleets: Path, catalog: Catalog) -> None:
    plan = plans.load(write(fleets, {"east": worker("lab"), "west": worker("rack", number=2)}), catalog)
    found = region_workers.list_regions(plan.hosts, plan.spec.workers)
    assert [(each.name, each.serving, each.others) for each in found] == [
        ("east", ("lab-0", "lab-1"), ("gateway-0",)),
        ("west", ("rack-a",), ()),
    ]


@pytest.mark.parametrize(
    ("workers", "says"),
    [
        ({"east": worker("lab")}, "workers: the pool 'rack' is in no region"),
        ({"east": worker("lab", "rack"), "west": worker("rack")}, "the pool 'rack' is in east too"),
        ({"east": worker("lab", "rack", "none")}, "there is no pool 'none'"),
        ({"east": {"address": "10.0.1.2", "pools": ["lab", "rack"]}}, "ssh_host_key"),
        ({"east": {**worker("lab", "rack"), "adress": "10.0.0.1"}}, "workers.east.adress: unknown key"),
        ({"east": {**worker("lab", "rack"), "python": "bin/python"}}, "workers.east.python"),
    ],
)
def test_what_workers_cannot_say_is_an_error_of_the_file(
    fleets: Path, catalog: Catalog, workers: dict[str, Any], says: str
) -> None:
    with pytest.raises(FleetError) as fault:
        plans.load(write(fleets, workers), catalog)
    assert fault.value.exit_code == 2
    assert says in "\n".join(map(str, [fault.value, *fault.value.others]))


def test_a_mirror_must_be_in_the_first_region(fleets: Path, catalog: Catalog) -> None:
    workers = {"east": worker("lab"), "west": worker("rack", number=2)}
    with pytest.raises(FleetError, match="is in west, and the hosts of east fetch from it"):
        plans.load(write(fleets, workers, mirror={"host": "rack-a"}), catalog)
    assert plans.load(write(fleets, workers, mirror={"host": "lab-0"}), catalog).spec.mirror.host == "lab-0"


def test_regions_are_chosen_by_name_and_hosts_only_by_region(fleets: Path, catalog: Catalog) -> None:
    directory = write(fleets, {"east": worker("lab"), "west": worker("rack", number=2)})
    plan = plans.load(directory, catalog)
    site = Site(plan, ())
    assert [each.name for each in rollout.choose_regions(site, [], None)] == ["east", "west"]
    (west,) = rollout.choose_regions(site, ["west"], None)
    assert (west.worker.address, west.python, west.limit) == ("10.0.2.2", regions.DEFAULT_PYTHON, ["rack-a"])
    with pytest.raises(FleetError, match="no region 'north'") as fault:
        rollout.choose_regions(site, ["north"], None)
    assert fault.value.hint == "regions of the fleet: east, west"
    with pytest.raises(FleetError, match="are those of its regions"):
        rollout.choose_regions(site, [], "lab-0")


def test_a_region_without_hosts_has_no_run(fleets: Path, catalog: Catalog) -> None:
    file = fleets / "golden" / "fleet.yml"
    spec = yaml.safe_load(file.read_text(encoding="utf-8"))
    spec["pools"]["later"] = {**spec["pools"]["lab"], "hosts": 0}
    spec["workers"] = {"east": worker("lab", "rack"), "west": worker("later", number=2)}
    file.write_text(yaml.safe_dump(spec), encoding="utf-8")
    found = rollout.choose_regions(Site(plans.load(file.parent, catalog), ()), [], None)
    assert [each.name for each in found] == ["east"]


def test_a_fleet_without_workers_has_no_regions(golden_site: Site) -> None:
    assert rollout.choose_regions(golden_site, [], "lab-0") == []
    with pytest.raises(FleetError, match="no region 'east'") as fault:
        rollout.choose_regions(golden_site, ["east"], None)
    assert fault.value.hint == "regions of the fleet: none: it has no workers"


def test_the_batches_of_a_region_count_its_own_hosts(fleets: Path) -> None:
    directory = write(fleets, {"east": worker("lab"), "west": worker("rack", number=2)})
    site = sites.load(directory)
    found = {region: order.plan_rollout(site, probing=False, region=region) for region in ("", "east", "west")}
    assert {name for step in found[""] for name in step.hosts} == {"lab-0", "lab-1", "rack-a"}
    assert [step.hosts for step in found["east"]] == [("lab-0",), ("lab-1",)]
    assert [(step.hosts, step.canaries) for step in found["west"]] == [(("rack-a",), ("rack-a",))]
    with pytest.raises(FleetError, match="fleet_region: there is no region 'north'") as fault:
        order.plan_rollout(site, probing=False, region="north")
    assert fault.value.exit_code == 2


def test_ansible_reaches_the_workers_by_their_own_keys(fleets: Path) -> None:
    directory = write(fleets, {"east": {**worker("lab", "rack"), "port": 2200, "user": "fleet"}})
    site = sites.load(directory)
    found = site.worker_variables(site.plan.spec.workers["east"])
    assert (found["ansible_host"], found["ansible_port"], found["ansible_user"]) == ("10.0.1.2", 2200, "fleet")
    assert "StrictHostKeyChecking=yes" in found["ansible_ssh_common_args"]
    assert f"[10.0.1.2]:2200 {KEY}\n" in site.known_hosts


def test_a_worker_gets_the_project_without_private_keys(fleets: Path, tmp_path: Path) -> None:
    fleet = fleets / "golden"
    (fleet / "ssh").mkdir()
    (fleet / "ssh" / "id_ed25519").write_text("private")
    (fleet / "own-key").write_text("private")
    (fleet / "api-key").write_text("private")
    data = tmp_path / "data"
    data.mkdir()
    inventory = regions.copy_project(fleet, fleet / "own-key", data)
    assert inventory.read_text(encoding="utf-8") == (fleet / "fleet.yml").read_text(encoding="utf-8")
    files = {path for path in data.rglob("*") if path.is_file()}
    assert {"site.yml", "ansible.cfg", "api-keys.yml"} <= {path.name for path in files}
    assert not [path for path in files if path.suffix == ".pyc" or path.read_text(errors="replace") == "private"]


def test_a_key_of_an_agent_takes_the_place_of_the_file(
    fleets: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = fleets / "golden" / "fleet.yml"
    spec = yaml.safe_load(file.read_text(encoding="utf-8"))
    spec.setdefault("access", {})["ssh_private_key_file"] = "not-here"
    file.write_text(yaml.safe_dump(spec), encoding="utf-8")
    plan = plans.load(file.parent, catalog)
    assert private_key.fleet_error(plan)
    assert Site(plan, ()).private_key_file == file.parent.resolve() / "not-here"
    for name, value in private_key.OF_AGENT.items():
        monkeypatch.setenv(name, value)
    assert private_key.fleet_error(plan) is None
    assert Site(plan, ()).private_key_file is None


def test_a_key_with_a_passphrase_is_known(tmp_path: Path) -> None:
    for name, passphrase in (("plain", ""), ("closed", "some words")):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(tmp_path / name)]
        subprocess.run(words, check=True)
    assert not has_passphrase(tmp_path / "plain")
    assert has_passphrase(tmp_path / "closed")


def counted(region: str, lost: int, *, ends: bool) -> Counted:
    return Counted(at=1.0, gateway="g", batch_ends=ends, backends={"m": {"hrsp_5xx": lost}}, region=region)


def test_batches_of_two_regions_side_by_side_count_from_their_own_begin() -> None:
    events = [
        Run(at=1.0, owner="o", fleet="f", kind="rollout", check=False, hosts=["a"], region="east"),
        Run(at=1.0, owner="o", fleet="f", kind="rollout", check=False, hosts=["b"], region="west"),
        BatchBegun(at=1.0, hosts=["a"], region="east"),
        counted("east", 0, ends=False),
        BatchBegun(at=1.0, hosts=["b"], region="west"),
        counted("west", 2, ends=False),
        counted("east", 2, ends=True),
        counted("west", 2, ends=True),
    ]
    timeline = Timeline.read(events)
    assert list(timeline.hosts) == ["a", "b"]
    assert timeline.lost["g", "m"] == {"hrsp_5xx": 2}


#: Stands in for the Python of a worker: it takes its time, in a session of its own, as ansible-playbook does.
SLOW = """\
#!/bin/sh
echo started
setsid sleep 1000 &
exec sleep 1000
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    folder = Path(run_worker.base_folder()) / f"test-{os.getpid()}"
    yield folder
    Path(f"{folder}.lock").unlink(missing_ok=True)


def start(place: Path, tmp_path: Path, program: str, silence: float = 120.0) -> subprocess.Popen[bytes]:
    python = tmp_path / "python"
    python.write_text(program)
    python.chmod(0o755)
    asked = {"command": "run", "python": str(python), "folder": str(place), "bytes": 0, "environment": {}}
    source = Path(run_worker.__file__).read_text(encoding="utf-8")
    source = source.replace("SILENCE_SECONDS = 120.0", f"SILENCE_SECONDS = {silence}")
    words = [sys.executable, "-c", source]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(json.dumps(asked).encode() + b"\n")
    process.stdin.flush()
    return process


def until_gone(place: Path) -> None:
    deadline = time.monotonic() + HANGING_SECONDS
    while place.exists() or list(run_worker.processes_of(str(place))):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_end_of_the_connection_ends_a_run_and_leaves_nothing(place: Path, tmp_path: Path) -> None:
    process = start(place, tmp_path, SLOW)
    assert process.stdout
    assert process.stdout.readline() == b"started\n"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    process.communicate(timeout=HANGING_SECONDS)
    until_gone(place)


def test_a_killed_worker_leaves_nothing(place: Path, tmp_path: Path) -> None:
    process = start(place, tmp_path, SLOW)
    assert process.stdout
    assert process.stdout.readline() == b"started\n"
    process.send_signal(signal.SIGKILL)
    until_gone(place)
    process.communicate(timeout=HANGING_SECONDS)


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_goes_on(place: Path, tmp_path: Path) -> None:
    first = start(place, tmp_path, SLOW)
    assert first.stdout
    assert first.stdout.readline() == b"started\n"
    second = start(place, tmp_path, SLOW)
    _, err = second.communicate(timeout=HANGING_SECONDS)
    assert second.returncode == run_worker.BUSY
    assert b"another run of this fleet and region is under way" in err
    assert first.poll() is None
    first.communicate(timeout=HANGING_SECONDS)
    until_gone(place)


def test_the_line_stop_makes_the_file_that_ends_the_rollout(place: Path, tmp_path: Path) -> None:
    process = start(place, tmp_path, '#!/bin/sh\nwhile [ ! -e stop ]; do sleep 0.1; done\necho "it stops"\n')
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"stop\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"it stops\n"
    process.communicate(timeout=HANGING_SECONDS)
    until_gone(place)


def test_a_controller_that_says_nothing_is_gone(place: Path, tmp_path: Path) -> None:
    process = start(place, tmp_path, SLOW, silence=0.5)
    assert process.stdout
    assert process.stdout.readline() == b"started\n"
    # The connection is open, and nothing comes.
    assert process.wait(timeout=HANGING_SECONDS) == run_worker.ALONE
    until_gone(place)
    process.communicate()


def test_a_folder_of_another_kind_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_worker, "MEMORY", str(tmp_path))
    folder = tmp_path / f"vllm-fleet-{os.getuid()}"
    folder.symlink_to(tmp_path)
    with pytest.raises(run_worker.UnusableError, match="is not a folder of this user alone"):
        run_worker.base_folder()
    folder.unlink()
    folder.mkdir(mode=0o755)
    with pytest.raises(run_worker.UnusableError, match="is not a folder of this user alone"):
        run_worker.base_folder()
