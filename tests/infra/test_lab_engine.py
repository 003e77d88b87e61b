"""The real engine on a lab of the test's own: bridge, subnet, backend and inventories that nothing else uses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hanging import HANGING_SECONDS

from infra import repair
from lab import cleanup, process, state
from vllm_fleet.base import paths

pytestmark = [pytest.mark.root, pytest.mark.network]

FLEET = "engine-test"
BRIDGE = f"vft{os.getpid() % 1_000_000}"
SUBNET = "10.79.253"
ARTIFACTS = paths.root() / "tests" / "fixtures" / "artifacts"


@dataclass(frozen=True)
class Lab:
    """A stack in a project folder, with the environment of its commands."""

    project: Path
    inventory: Path
    environment: dict[str, str]

    def pulumi(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            ["pulumi", *words, "--stack", FLEET, "--non-interactive"],
            cwd=self.project,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=HANGING_SECONDS,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def up(self) -> str:
        return self.pulumi("up", "--yes", "--skip-preview", "--refresh")

    def stack(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.inventory / "stack.json").read_text(encoding="utf-8"))
        return found

    def ssh(self, host: str, command: str) -> str:
        at = self.stack()["hosts"][host]
        known = self.project / "known_hosts"
        known.write_text(f"{at['address']} {at['ssh_host_key']}\n", encoding="utf-8")
        options = ["BatchMode=yes", "StrictHostKeyChecking=yes", f"UserKnownHostsFile={known}", "ConnectTimeout=10"]
        return subprocess.run(
            [
                *("ssh", "-i", str(self.inventory / "ssh" / "id_ed25519"), "-F", "none"),
                *(word for option in options for word in ("-o", option)),
                *(f"{at['user']}@{at['address']}", command),
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=HANGING_SECONDS,
        ).stdout

    def backend_texts(self) -> str:
        backend = self.project / "backend"
        return "\n".join(path.read_text(errors="replace") for path in backend.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    project = tmp_path_factory.mktemp("project")
    inventory = project / "inventories" / FLEET
    inventory.mkdir(parents=True)
    (inventory / "fleet.yml").write_text(
        f"fleet: {FLEET}\n"
        "defaults: {model: vllm-fleet/lab-gpt-oss}\n"
        "pools:\n"
        f"  lab: {{host_class: cpu-2, cloud: lab, hosts: 1, placement: {{bridge: {BRIDGE}, subnet: {SUBNET}.0/24}}}}\n"
        "gateway: {hosts: 1}\n"
        "access: {ssh_private_key_file: ssh/id_ed25519}\n"
        f"artifacts: {{models: {{vllm-fleet/lab-gpt-oss: {ARTIFACTS}/model}}, encodings: {ARTIFACTS}/encodings}}\n",
        encoding="utf-8",
    )
    shutil.copy(paths.root() / "Pulumi.yaml", project)
    (project / "infra").symlink_to(paths.root() / "infra")
    (project / "backend").mkdir()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "VLLM_FLEET_INVENTORIES": str(project / "inventories"),
        "PULUMI_BACKEND_URL": f"file://{project / 'backend'}",
        "PULUMI_HOME": str(project / "home"),
        "PULUMI_CONFIG_PASSPHRASE": "only for this test",
        "PULUMI_SKIP_UPDATE_CHECK": "1",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
    }
    found = Lab(project, inventory, environment)
    found.pulumi("stack", "init")
    try:
        found.up()
        yield found
    finally:
        if state.lab_dir(BRIDGE).is_dir():
            cleanup.down(BRIDGE)


def test_a_second_run_changes_nothing(lab: Lab) -> None:
    before = lab.stack()
    said = lab.up()
    assert "created" not in said
    assert "updated" not in said
    assert lab.stack() == before


def test_hosts_answer_with_the_host_key_of_the_stack(lab: Lab) -> None:
    said = lab.ssh("lab-0", "hostname; sudo -n id -u; getent hosts gateway-0; systemctl is-system-running --wait")
    assert said.split() == ["lab-0", "0", f"{SUBNET}.2", "gateway-0", "running"]


def test_hosts_reach_the_registries(lab: Lab) -> None:
    said = lab.ssh(
        "lab-0",
        "sudo apt-get update -q 2>&1; python3 -m venv /tmp/v; /tmp/v/bin/pip download -q -d /tmp/d six; ls /tmp/d",
    )
    assert "Err:" not in said
    assert "six-" in said


def test_the_output_and_the_file_are_the_same_bytes(lab: Lab) -> None:
    printed = lab.pulumi("stack", "output", "inventory", "--json")
    assert printed == (lab.inventory / "stack.json").read_text(encoding="utf-8")


def test_no_secret_is_in_the_state_in_plain_text(lab: Lab) -> None:
    state_text = lab.backend_texts()
    api_key = (lab.inventory / "api-key").read_text(encoding="utf-8")
    deploy_key = (lab.inventory / "ssh" / "id_ed25519").read_text(encoding="utf-8").splitlines()[2]
    host_key = lab.ssh("lab-0", "sudo sed -n 3p /etc/ssh/ssh_host_ed25519_key").strip()
    assert lab.stack()["hosts"]["lab-0"]["id"] in state_text
    for secret in (api_key, deploy_key, host_key, "OPENSSH PRIVATE KEY"):
        assert secret
        assert secret not in state_text


def test_secret_files_are_for_their_owner_alone(lab: Lab) -> None:
    for name in ("api-key", "ssh/id_ed25519"):
        assert (lab.inventory / name).stat().st_mode & 0o777 == 0o600


def rotate(lab: Lab, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ansible-playbook", "-i", str(lab.inventory / "fleet.yml"), "playbooks/rotate-host-keys.yml", *more],
        cwd=paths.root(),
        env=lab.environment,
        capture_output=True,
        text=True,
        timeout=HANGING_SECONDS,
    )


def shown(lab: Lab, host: str) -> str:
    """The key that a host shows to somebody who trusts nothing yet."""
    address = lab.stack()["hosts"][host]["address"]
    words = ["ssh-keyscan", "-T", "10", "-t", "ed25519", address]
    line = subprocess.run(words, check=True, capture_output=True, text=True, timeout=HANGING_SECONDS).stdout
    return " ".join(line.split()[1:3])


def own_keys(lab: Lab) -> dict[str, list[str]]:
    found: dict[str, list[str]] = yaml.safe_load((lab.inventory / "host-keys.yml").read_text(encoding="utf-8"))["keys"]
    return found


def test_hosts_rotate_their_keys_and_a_run_that_was_cut_off_is_ended(lab: Lab) -> None:
    made = {name: at["ssh_host_key"] for name, at in lab.stack()["hosts"].items()}
    done = rotate(lab)
    assert done.returncode == 0, done.stdout + done.stderr
    first = own_keys(lab)
    for host, old in made.items():
        assert first[host] == [shown(lab, host)]
        assert old not in first[host]
    # Cut off after both keys were written and the host took the new one: what stands is new, old.
    again = rotate(lab, "--limit", "lab-0")
    assert again.returncode == 0, again.stdout + again.stderr
    second = own_keys(lab)
    assert (second["gateway-0"], second["lab-0"] != first["lab-0"]) == (first["gateway-0"], True)
    file = lab.inventory / "host-keys.yml"
    text = file.read_text(encoding="utf-8")
    now = second["lab-0"][0]
    file.write_text(text.replace(f"    - {now}\n", f"    - {now}\n    - {first['lab-0'][0]}\n"), encoding="utf-8")
    ended = rotate(lab, "--limit", "lab-0")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert own_keys(lab)["lab-0"] == [now] == [shown(lab, "lab-0")]
    assert rotate(lab, "--check").returncode == 0
    assert own_keys(lab)["lab-0"] == [now]
    file.unlink()
    # The stack's own keys again, for the tests after this one: a host that is made again shows them.
    for host in made:
        for each in process.find(state.host_dir(BRIDGE, host) / "root"):
            os.kill(each.pid, signal.SIGKILL)
    lab.pulumi("refresh", "--yes", "--skip-preview")
    lab.up()
    assert {host: shown(lab, host) for host in made} == made


def test_a_host_that_was_killed_is_seen_and_made_again(lab: Lab) -> None:
    before = lab.stack()["hosts"]
    for each in process.find(state.host_dir(BRIDGE, "lab-0") / "root"):
        os.kill(each.pid, signal.SIGKILL)
    assert "1 deleted" in lab.pulumi("refresh", "--yes", "--skip-preview")
    lab.up()
    after = lab.stack()["hosts"]
    assert before["lab-0"]["id"] != after["lab-0"]["id"]
    assert before["lab-0"]["ssh_host_key"] == after["lab-0"]["ssh_host_key"]
    assert before["gateway-0"] == after["gateway-0"]
    assert lab.ssh("lab-0", "hostname").strip() == "lab-0"


def test_files_that_were_lost_or_changed_are_written_again(lab: Lab) -> None:
    before = {path: path.read_bytes() for path in lab.inventory.rglob("*") if path.is_file()}
    (lab.inventory / "stack.json").unlink()
    (lab.inventory / "api-key").write_text("changed", encoding="utf-8")
    lab.up()
    assert {path: path.read_bytes() for path in before} == before


def test_a_network_without_nat_is_repaired_in_place(lab: Lab) -> None:
    subprocess.run(["nft", "delete", "table", "ip", f"vllm_fleet_{BRIDGE}"], check=True)
    said = lab.up()
    assert "1 updated" in said
    subprocess.run(["nft", "list", "table", "ip", f"vllm_fleet_{BRIDGE}"], check=True, capture_output=True)


def test_a_run_that_was_killed_half_way_is_repaired_by_the_next(lab: Lab) -> None:
    lab.pulumi("destroy", "--yes", "--skip-preview")
    engine = subprocess.Popen(
        ["pulumi", "up", "--yes", "--skip-preview", "--non-interactive", "--stack", FLEET],
        cwd=lab.project,
        env=lab.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + HANGING_SECONDS
    while not process.find(state.host_dir(BRIDGE, "lab-0") / "root"):
        assert engine.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    engine.kill()
    engine.wait()
    done = subprocess.run(
        [sys.executable, "-m", "infra.repair", FLEET],
        cwd=lab.project,
        env=lab.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "removed the lock of a killed pulumi" in done.stderr
    lab.up()
    assert lab.ssh("lab-0", "hostname").strip() == "lab-0"
    assert repair.open_creations(lab.environment["PULUMI_BACKEND_URL"], FLEET) == []


def test_destroy_leaves_nothing(lab: Lab) -> None:
    lab.pulumi("destroy", "--yes", "--skip-preview")
    assert [path.name for path in lab.inventory.iterdir()] == ["fleet.yml"]
    assert not state.lab_dir(BRIDGE).exists()
    assert BRIDGE not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    assert not list(Path("/sys/class/net").glob(f"*{BRIDGE}*"))
    rules = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    assert BRIDGE not in rules
    assert process.members(f"{BRIDGE}-lab-0") == []
    assert not [group for group in process.groups_of(f"{BRIDGE}-lab-0") if group.exists()]
