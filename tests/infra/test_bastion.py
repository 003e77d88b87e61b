"""A host behind a bastion, in networks of their own: the commands and Ansible reach it, from a checkout with blanks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from bastion_lab import BASTION_ADDRESS, Bastion, bastion
from hanging import HANGING_SECONDS
from real_sshd import Sshds, public

from lab import cleanup, gpu, host, network, state
from lab.rootfs import write_files
from lab.spec import HostSpec, NetworkSpec
from lab.tree import ensure_tree, tree_digest
from vllm_fleet.base import paths
from vllm_fleet.edge.keys import ssh_key_pair
from vllm_fleet.edge.ssh_scan import fingerprint

pytestmark = pytest.mark.root

BRIDGE, SUBNET = "vf-behind", "10.79.14"
HOST_ADDRESS = f"{SUBNET}.11"
#: Only the bastion knows this name.
HOST_NAME = "gpu-1.rack.internal"
FIXTURES = Path(__file__).parents[1] / "fixtures"
PARTS = ("vllm_fleet", "plugins", "playbooks", "roles", "recipes", "site.yml", "ansible.cfg", "Pulumi.yaml")


@dataclass
class Site:
    """The three machines, with a checkout on the controller."""

    checkout: Path
    inventories: Path
    key_file: Path
    door: Bastion
    host_key: str

    def run(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a Python program of the environment on the controller."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SSH_", "ANSIBLE_"))}
        environment |= {
            "PYTHONPATH": str(self.checkout),
            "VLLM_FLEET_INVENTORIES": str(self.inventories),
            "ANSIBLE_CONFIG": str(self.checkout / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
        }
        return subprocess.run(
            [*self.door.on_controller, sys.executable, *words],
            cwd=self.checkout,
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=HANGING_SECONDS,
            check=False,
        )

    def fleet(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("-c", "from vllm_fleet.cli import main; main()", *words)

    def ansible(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "ansible", "adhoc", *words)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("bastion")
    servers = Sshds(folder)
    if BRIDGE in state.labs():
        cleanup.down(BRIDGE)
    network.create(NetworkSpec(BRIDGE, f"{SUBNET}.0/24", str(folder), 1))
    try:
        key = create_host(servers.key_file)
        checkout = folder / "it's a checkout"
        checkout.mkdir()
        for part in PARTS:
            source = paths.root() / part
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, checkout / part)
        with bastion(BRIDGE, SUBNET, servers, {HOST_NAME: HOST_ADDRESS}) as door:
            yield Site(checkout, folder / "all fleets", servers.key_file, door, key)
    finally:
        cleanup.down(BRIDGE)


def create_host(key_file: Path) -> str:
    """The host behind the bastion, with the stand-in tools of a GPU host; returns its public host key."""
    ensure_tree()
    private, host_key = ssh_key_pair()
    spec = {
        **{"bridge": BRIDGE, "name": "gpu-0", "address": HOST_ADDRESS, "subnet": f"{SUBNET}.0/24", "user": "deploy"},
        **{"authorised_key": public(key_file), "host_key": host_key, "tree": tree_digest()},
        **{"peers": {"gpu-0": HOST_ADDRESS}, "binds": {}, "disk_gib": 1},
    }
    host.create(HostSpec.from_properties(spec), private)
    write_files(state.host_dir(BRIDGE, "gpu-0") / "root", gpu.tools("h200-8"))
    return host_key


def init(site: Site, name: str, address: str, *more: str) -> subprocess.CompletedProcess[str]:
    known = f"{address}={fingerprint(site.host_key)}"
    words = ("--host", f"deploy@{address}", "--fingerprint", known, "--key", str(site.key_file), "--yes")
    return site.fleet("init", name, *words, *more)


def give_artifacts(site: Site, name: str) -> Path:
    """Gives the fleet the models and vocabularies of the tests."""
    file = site.inventories / name / "fleet.yml"
    written = yaml.safe_load(file.read_text())
    artifacts = FIXTURES / "artifacts"
    models = {pool["model"]: str(artifacts / pool["model"].split("/")[1]) for pool in written["pools"].values()}
    written["artifacts"] = {"models": models, "encodings": str(artifacts / "encodings")}
    file.write_text(yaml.safe_dump(written))
    return file


def through_bastion(site: Site) -> tuple[str, ...]:
    known = f"{BASTION_ADDRESS}={fingerprint(site.door.sshd.key)}"
    return ("--bastion", f"root@{BASTION_ADDRESS}", "--fingerprint", known)


def assert_reached(site: Site, name: str, host: str) -> None:
    """The probe and Ansible reach the host, through the bastion."""
    file = give_artifacts(site, name)
    before = site.door.sshd.logins
    drift = site.fleet("drift", "--fleet", name, "--json")
    assert drift.returncode == 3, drift.stdout + drift.stderr
    assert json.loads(drift.stdout)["hosts"] == 1
    assert site.door.sshd.logins == before + 1
    ping = site.ansible("-i", str(file), host, "-m", "ansible.builtin.ping")
    assert ping.returncode == 0, ping.stdout + ping.stderr
    assert '"pong"' in ping.stdout or "ping: pong" in ping.stdout
    assert site.door.sshd.logins > before + 1


def test_the_controller_does_not_reach_the_host(site: Site) -> None:
    done = init(site, "direct", HOST_ADDRESS)
    assert done.returncode == 2
    assert f"{HOST_ADDRESS}: cannot be reached at port 22" in done.stderr
    assert not (site.inventories / "direct").exists()


@pytest.mark.parametrize("address", [HOST_ADDRESS, HOST_NAME], ids=["address", "name that the bastion resolves"])
def test_init_drift_and_ansible_pass_the_bastion(site: Site, address: str) -> None:
    name = "by-address" if address == HOST_ADDRESS else "by-name"
    done = init(site, name, address, *through_bastion(site))
    assert done.returncode == 0, done.stderr
    written = yaml.safe_load((site.inventories / name / "fleet.yml").read_text())
    assert written["access"]["bastion"] == {
        "address": BASTION_ADDRESS,
        "user": "root",
        "ssh_host_key": site.door.sshd.key,
    }
    # A name that the bastion alone resolves cannot be in the gateways' configuration.
    host = written["pools"]["h200"]["static"]["h200-0"]
    assert host.get("private_address") == (None if address == HOST_ADDRESS else HOST_ADDRESS)
    assert_reached(site, name, "h200-0")


def test_another_key_of_the_bastion_is_refused(site: Site) -> None:
    assert init(site, "strict", HOST_ADDRESS, *through_bastion(site)).returncode == 0
    file = give_artifacts(site, "strict")
    file.write_text(file.read_text().replace(site.door.sshd.key, site.host_key))
    before = site.door.sshd.logins
    done = site.fleet("drift", "--fleet", "strict")
    assert done.returncode == 1
    assert f"cannot be reached through the bastion: {BASTION_ADDRESS} shows another SSH host key than" in done.stderr
    ping = site.ansible("-i", str(file), "h200-0", "-m", "ansible.builtin.ping")
    assert (ping.returncode, "UNREACHABLE" in ping.stdout) == (4, True), ping.stdout
    assert site.door.sshd.logins == before


def test_a_host_that_the_bastion_does_not_reach_is_named(site: Site) -> None:
    wrong = "10.98.1.77"
    done = init(site, "silent", HOST_ADDRESS, "--host", f"deploy@{wrong}", *through_bastion(site))
    assert done.returncode == 2
    assert f"{wrong}: cannot be reached through {BASTION_ADDRESS} at port 22" in done.stderr
    assert f"{HOST_ADDRESS} port 22  {fingerprint(site.host_key)}" in done.stderr
    assert not (site.inventories / "silent").exists()


def test_a_configuration_of_ssh_with_the_fleet_leads_there(site: Site) -> None:
    known = site.inventories.parent / "users_known_hosts"
    known.write_text(f"{BASTION_ADDRESS} {site.door.sshd.key}\n")
    config = site.inventories.parent / "ssh_config"
    config.write_text(
        f"Host door\n  HostName {BASTION_ADDRESS}\n  User root\n  IdentityFile {site.key_file}\n"
        f"  UserKnownHostsFile {known}\nHost rack-1\n  HostName {HOST_ADDRESS}\n  User deploy\n  ProxyJump door\n"
    )
    done = site.fleet(
        "init",
        "by-alias",
        *("--host", "rack-1", "--fingerprint", f"rack-1={fingerprint(site.host_key)}"),
        *("--key", str(site.key_file), "--ssh-config", str(config), "--yes"),
    )
    assert done.returncode == 0, done.stderr
    written = yaml.safe_load((site.inventories / "by-alias" / "fleet.yml").read_text())
    host = written["pools"]["h200"]["static"]["h200-0"]
    assert (host["address"], host["ssh_alias"]) == (HOST_ADDRESS, "rack-1")
    assert_reached(site, "by-alias", "h200-0")
