"""A rollout through the workers of two regions, which are lab hosts: real sshd, real ansible-runner on both sides."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import one_run
import pytest
import rollout_lab
from driver_lab import DriverLab, Place, boot_host, make_key, public_key
from hanging import HANGING_SECONDS
from rollout_lab import accepted, batches, served, set_release, up

from lab import state
from lab.rootfs import File, write_files
from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.edge.worker import Transmitted
from vllm_fleet.operate.rollout import record, regions, run
from vllm_fleet.operate.rollout.record import BatchBegun, Event, PhaseBegun
from vllm_fleet.operate.rollout.timeline import Timeline

pytestmark = [pytest.mark.root, pytest.mark.network]
NUMBERS = {"gateway-0": 2, "gpu-0": 11, "gpu-1": 12, "gpu-3": 13}
PLACE = Place("vf-regions", "10.79.24", {name: f"10.79.24.{number}" for name, number in NUMBERS.items()})
WORKERS = {"worker-east": "10.79.24.21", "worker-west": "10.79.24.22"}
EAST, WEST = ("gpu-0", "gpu-1"), ("gpu-3",)
SERVERS = [f"{name}_0" for name in PLACE.serving]
FLEET = f"test-{PLACE.bridge}"
PASSWORD = "a-password-of-this-test"
PYTHON = "/opt/vllm-fleet/bin/python"
PLAYBOOK = "/opt/vllm-fleet/bin/ansible-playbook"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DriverLab]:
    forget_records()
    with rollout_lab.opened(tmp_path_factory.mktemp("regions"), PLACE) as found:
        for name, address in WORKERS.items():
            make_key(found.folder / name)
            boot_host(found, name, address, {sysconfig.get_path("purelib"): "/opt/packages"})
            give_packages(found, name)
        yield found
    forget_records()


def give_packages(lab: DriverLab, name: str) -> None:
    """The packages of this environment, if the Python of the worker can use them; else they are installed."""
    version = on(lab, name, "python3 -c 'import sys; print(*sys.version_info[:2])'").split()
    if version != list(map(str, sys.version_info[:2])):
        install(lab, name)
        on(lab, name, f"ln -s {Path(regions.DEFAULT_PYTHON).parents[1]} /opt/vllm-fleet")
        return
    lines = (f"#!{PYTHON}", "from ansible.cli.playbook import main", "main()")
    on(
        lab,
        name,
        "python3 -m venv --without-pip /opt/vllm-fleet\n"
        "echo /opt/packages > $(echo /opt/vllm-fleet/lib/python3*/site-packages)/packages.pth\n"
        f"printf '%s\\n' {' '.join(map(shlex.quote, lines))} > {PLAYBOOK}\n"
        f"chmod +x {PLAYBOOK}\n",
    )


def install(lab: DriverLab, name: str) -> int:
    """Runs playbooks/workers.yml for a worker; returns how many tasks have changed something."""
    options = ssh(lab, name)[1:-1]
    variables = {
        "ansible_host": WORKERS[name],
        "ansible_user": "deploy",
        "ansible_ssh_private_key_file": str(lab.key_file),
        "ansible_ssh_common_args": shlex.join(options),
    }
    inventory = lab.folder / "workers.yml"
    inventory.write_text(json.dumps({"region_workers": {"hosts": {name: variables}}}), encoding="utf-8")
    words = ["ansible-playbook", "-i", str(inventory), str(paths.root() / "playbooks" / "workers.yml")]
    done = subprocess.run(words, cwd=paths.root(), capture_output=True, text=True, check=False, timeout=HANGING_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return one_run.counts(done.stdout)[name]["changed"]


def forget_records() -> None:
    shutil.rmtree(record.folder(FLEET).parent, ignore_errors=True)


def worker(lab: DriverLab, name: str) -> Target:
    return Target(name, WORKERS[name], 22, "deploy", (public_key(lab.folder / name),), lab.key_file)


def ssh(lab: DriverLab, name: str) -> list[str]:
    """The words of ssh that log in to a worker."""
    known = lab.folder / "known_workers"
    known.write_text(f"{WORKERS[name]} {public_key(lab.folder / name)}\n", encoding="utf-8")
    options = ["-F", "none", "-i", str(lab.key_file), "-o", f"UserKnownHostsFile={known}"]
    return ["ssh", *options, f"deploy@{WORKERS[name]}"]


def on(lab: DriverLab, name: str, command: str) -> str:
    """The output of a command that root runs on a worker."""
    words = [*ssh(lab, name), "sudo sh"]
    done = subprocess.run(words, input=command, capture_output=True, text=True, timeout=HANGING_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def release(lab: DriverLab, note: str, *knobs: str, hosts: tuple[str, ...] = PLACE.serving) -> None:
    for name in hosts:
        set_release(lab, name, *knobs, note=note)
        lab.variables[name]["fleet_name"] = FLEET
        lab.variables[name]["vllm_service_gates"]["reference"] = f"{{{{ inventory_dir }}}}/cpu-2--stand-in--{note}.json"
        lab.variables[name]["vllm_service_start_cache_store"] = "{{ inventory_dir }}/caches"


def order(lab: DriverLab, folder: Path, *arguments: str, **options: Any) -> regions.Order:
    """The order of a rollout; the inventory goes along, and the keys of the hosts do not."""
    forget_records()  # a process has one record
    folder.mkdir(exist_ok=True)
    regions.copy_project(paths.root() / "inventories" / "lab", None, folder)
    text = lab.write_inventory(batches(*([name] for name in PLACE.serving))).read_text(encoding="utf-8")
    text = text.replace(f'"ansible_ssh_private_key_file": "{lab.key_file}", ', "")
    text = text.replace(str(lab.folder / "known_hosts"), "{{ inventory_dir }}/known_hosts")
    assert str(lab.folder) not in text
    inventory = folder / "inventory" / "hosts.yml"
    inventory.parent.mkdir()
    inventory.write_text(text, encoding="utf-8")
    shutil.copy(lab.folder / "known_hosts", inventory.parent)
    key = lab.key_file.read_text(encoding="utf-8")
    found = [
        regions.Region("east", worker(lab, "worker-east"), PYTHON, EAST, EAST),
        regions.Region("west", worker(lab, "worker-west"), PYTHON, WEST, WEST),
    ]
    return regions.Order(
        FLEET, found, Transmitted(folder, "playbooks/rollout.yml", inventory, arguments, key, PASSWORD), **options
    )


class Heard:
    """What a run says while it goes on."""

    def __init__(self, on_event: Callable[[Event], None] = lambda _: None) -> None:
        self.events: list[Event] = []
        self.output: list[str] = []
        self.notes: list[str] = []
        self._on_event = on_event

    def hear_event(self, event: Event, timeline: Timeline) -> None:  # noqa: ARG002 - of the protocol
        self.events.append(event)
        self._on_event(event)

    def hear_task(self, task: str) -> None:
        """Not looked at."""

    def hear_output(self, text: str) -> None:
        self.output.append(text)

    def hear_interrupt(self, text: str) -> None:
        self.notes.append(text)

    def look_on(self, timeline: Timeline) -> None:
        """Not looked at."""

    @property
    def batches(self) -> list[tuple[str, list[str]]]:
        """The batches that have begun: region, hosts."""
        return [(event.region, event.hosts) for event in self.events if isinstance(event, BatchBegun)]


#: Prints where any of the lines of its input is: in files of a worker, in command lines and environments.
SEARCH = """
import os, sys
marks = [line.strip().encode() for line in sys.stdin]
places = ["/dev/shm", "/tmp", "/var/tmp", "/home", "/root", "/run", "/var/log"]
files = [os.path.join(at, name) for place in places for at, _, names in os.walk(place) for name in names]
files += ["/proc/%s/%s" % (number, part) for number in os.listdir("/proc") if number.isdigit()
          for part in ("cmdline", "environ")]
for file in files:
    try:
        if os.path.isfile(file) and any(mark in open(file, "rb").read() for mark in marks):
            print(file)
    except OSError:
        continue
"""


def find_secrets(lab: DriverLab, name: str) -> str:
    """Where the key of the hosts or the password is on a worker."""
    marks = [lab.key_file.read_text(encoding="utf-8").split("\n")[2], PASSWORD]
    write_files(state.host_dir(PLACE.bridge, name) / "root", {"opt/search": File(SEARCH)})
    return on(lab, name, "python3 /opt/search <<END\n" + "\n".join(marks) + "\nEND\n")


def nothing_is_left(lab: DriverLab) -> None:
    """No file and no process of a run is on a worker."""
    for name in WORKERS:
        assert on(lab, name, "ls /dev/shm/vllm-fleet-*/ | grep -v lock$ || true").split() == []
        assert on(lab, name, "pgrep -fa '[a]nsible|[s]sh-agent' || true") == ""


def everything_serves(lab: DriverLab) -> None:
    assert up(lab) == dict.fromkeys(SERVERS, "UP")
    assert lab.on("gateway-0", "ls /var/lib/vllm-gateway").split() == ["lock"]
    for name in PLACE.serving:
        assert "trial.json" not in lab.on(name, "ls /opt/vllm")


def newest() -> list[Event]:
    return record.read_record(record.list_records(FLEET)[0])


def test_the_second_region_begins_after_the_first_and_has_a_canary_of_its_own(lab: DriverLab, tmp_path: Path) -> None:
    release(lab, "first")
    places: dict[str, str] = {}

    def search(event: Event) -> None:
        if isinstance(event, BatchBegun) and not places:
            places.update({name: find_secrets(lab, name) for name in WORKERS})

    heard = Heard(search)
    finished = regions.drive(order(lab, tmp_path), heard)
    assert finished.error() is None, (finished.errors, heard.output)
    assert [served(lab, name) for name in PLACE.serving] == ["first"] * 3
    assert heard.batches == [("east", ["gpu-0"]), ("east", ["gpu-1"]), ("west", ["gpu-3"])]
    assert places == dict.fromkeys(WORKERS, ""), "a secret is in a file, a command line or an environment"
    assert {name: find_secrets(lab, name) for name in WORKERS} == dict.fromkeys(WORKERS, "")
    nothing_is_left(lab)
    # One record has both regions, and every host of them.
    assert finished.file
    timeline = Timeline.read(record.read_record(finished.file))
    assert timeline.summary == "3 of 3 hosts serve the release"
    assert timeline.ended
    assert timeline.ended.state == "done"
    assert finished.file.with_suffix(".html").exists()
    everything_serves(lab)


def test_a_refused_canary_of_the_first_region_touches_nothing_in_the_second(lab: DriverLab, tmp_path: Path) -> None:
    before = {name: accepted(lab, name) for name in PLACE.serving}
    west = {name: lab.on(name, "systemctl show -P InvocationID vllm@0") for name in WEST}
    release(lab, "bad", "tools=broken")
    heard = Heard()
    finished = regions.drive(order(lab, tmp_path), heard)
    error = finished.error()
    assert error
    assert (error.exit_code, error.message) == (1, "1 hosts do not serve the release: gpu-0")
    assert heard.batches == [("east", ["gpu-0"])]
    assert {name: accepted(lab, name) for name in PLACE.serving} == before
    assert {name: lab.on(name, "systemctl show -P InvocationID vllm@0") for name in WEST} == west
    assert finished.timeline.summary.startswith("0 of 3 hosts serve the release, 1 does not, ")
    assert finished.timeline.ended
    assert finished.timeline.ended.state == "refused"
    everything_serves(lab)
    nothing_is_left(lab)


def test_a_worker_that_is_killed_leaves_a_state_that_the_next_run_repairs(lab: DriverLab, tmp_path: Path) -> None:
    release(lab, "second", "start_seconds=600", hosts=("gpu-0",))
    killed: list[str] = []

    def kill(event: Event) -> None:
        if isinstance(event, PhaseBegun) and event.phase == "start" and not killed:
            killed.append(on(lab, "worker-east", "pkill -9 -o -f on_host; echo killed"))

    heard = Heard(kill)
    finished = regions.drive(order(lab, tmp_path / "killed"), heard)
    assert killed == ["killed\n"]
    error = finished.error()
    assert error
    assert (error.exit_code, error.host) == (1, "worker-east"), error
    assert "run the command again" in error.hint
    assert heard.batches == [("east", ["gpu-0"])]
    assert finished.timeline.ended
    assert finished.timeline.ended.state == "failed"
    assert [served(lab, name) for name in WEST] == ["first"]
    release(lab, "second")
    again = regions.drive(order(lab, tmp_path / "again", after="canary"), Heard())
    assert again.error() is None, again.errors
    assert [served(lab, name) for name in PLACE.serving] == ["second"] * 3
    everything_serves(lab)
    nothing_is_left(lab)


def test_ctrl_c_ends_the_rollout_after_the_batch_and_no_further_region_begins(lab: DriverLab, tmp_path: Path) -> None:
    release(lab, "third")

    def press(event: Event) -> None:
        if isinstance(event, BatchBegun):
            signal.raise_signal(signal.SIGINT)

    heard = Heard(press)
    finished = regions.drive(order(lab, tmp_path), heard)
    error = finished.error()
    assert error
    assert (error.exit_code, error.message) == (130, "interrupted after the batch in work")
    assert heard.notes == [run.ENDS_SOON]
    assert heard.batches == [("east", ["gpu-0"])]
    assert [served(lab, name) for name in PLACE.serving] == ["third", "second", "second"]
    assert finished.timeline.ended
    assert finished.timeline.ended.state == "paused"
    everything_serves(lab)
    nothing_is_left(lab)


def test_a_worker_that_cannot_be_used_stops_the_run_before_anything_is_touched(lab: DriverLab, tmp_path: Path) -> None:
    good = order(lab, tmp_path)
    east, west = good.regions
    cases = {
        "/opt/none/bin/python is missing": (2, replace(west, python="/opt/none/bin/python")),
        "ansible-core is missing": (2, replace(west, python="/usr/bin/python3")),
        "shows another SSH host key": (1, replace(west, worker=replace(west.worker, host_keys=east.worker.host_keys))),
    }
    for text, (code, region) in cases.items():
        with pytest.raises(FleetError, match=text) as fault:
            regions.drive(replace(good, regions=[east, region]), Heard())
        assert (fault.value.exit_code, fault.value.host) == (code, "worker-west")
    assert record.list_records(FLEET) == []
    nothing_is_left(lab)


def test_the_commands_of_ansible_runner_alone_roll_out_a_region(lab: DriverLab, tmp_path: Path) -> None:
    release(lab, "plain")
    before = served(lab, "gpu-1")
    sent = order(lab, tmp_path).sent
    (tmp_path / "env" / "ssh_key").write_text(str(sent.private_key), encoding="utf-8")
    runner = [sys.executable, "-m", "ansible_runner"]
    words = [
        *runner,
        "transmit",
        str(tmp_path),
        "-p",
        sent.book,
        "--inventory",
        str(sent.inventory),
        "--limit",
        "gpu-0",
    ]
    place = f"/dev/shm/{FLEET}"  # noqa: S108 - on the lab host
    remote = (
        f"umask 077; export PYTHONPATH={place}/project PATH=/opt/vllm-fleet/bin:$PATH;"
        f"python -m ansible_runner worker --private-data-dir {place} --delete"
    )
    with (
        subprocess.Popen(words, stdout=subprocess.PIPE) as transmit,
        subprocess.Popen([*ssh(lab, "worker-east"), remote], stdin=transmit.stdout, stdout=subprocess.PIPE) as work,
    ):
        done = subprocess.run(
            [*runner, "process", str(tmp_path)],
            stdin=work.stdout,
            capture_output=True,
            text=True,
            timeout=HANGING_SECONDS,
            check=False,
        )
    assert "gpu-0" in done.stdout.rpartition("PLAY RECAP")[2], done.stdout + done.stderr
    assert [served(lab, name) for name in EAST] == ["plain", before]
    assert list(tmp_path.glob("artifacts/**/rc"))
    assert on(lab, "worker-east", f"ls -d {place} || true") == ""
    # Without run_worker the agent and the shared connections outlive the run for a while.
    on(lab, "worker-east", "pkill -u deploy -f 'ssh-agent|mux' || true")
    everything_serves(lab)


@pytest.mark.long
def test_the_playbook_installs_the_packages_of_the_lock_and_a_region_rolls_out_with_them(
    lab: DriverLab, tmp_path: Path
) -> None:
    install(lab, "worker-west")
    assert install(lab, "worker-west") == 0
    release(lab, "installed")
    made = order(lab, tmp_path / "run")
    finished = regions.drive(replace(made, regions=[replace(made.regions[1], python=regions.DEFAULT_PYTHON)]), Heard())
    assert finished.error() is None
    assert served(lab, "gpu-3") == "installed"
    nothing_is_left(lab)
