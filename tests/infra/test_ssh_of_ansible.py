"""The probe, ``init`` and Ansible reach a host in the same way, by Ansible's options or by the user's ~/.ssh/config."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hanging import HANGING_SECONDS
from real_sshd import USER, Sshd, Sshds

from lab import gpu
from lab.rootfs import write_files
from vllm_fleet.base import paths
from vllm_fleet.edge.ssh_options import user_home
from vllm_fleet.edge.ssh_scan import fingerprint

pytestmark = pytest.mark.root

FIXTURES = Path(__file__).parents[1] / "fixtures"
FLEET = f"rack{os.getpid()}"


@dataclass
class Fleet:
    """A fleet of one host, and a jump that nothing but the options of a test leads to."""

    folder: Path
    door: Sshd
    host: Sshd
    jump_config: Path

    def run(self, program: str, *words: str, environment: Mapping[str, str]) -> str:
        own = {name: value for name, value in os.environ.items() if not name.startswith("SSH_")}
        config = {"ANSIBLE_CONFIG": str(paths.root() / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(
            [program, "-i", self.folder / "fleet.yml", *words],
            cwd=paths.root(),
            env={**own, **config, **environment},
            capture_output=True,
            text=True,
            timeout=HANGING_SECONDS,
            check=False,
        )
        return done.stdout + done.stderr

    def logins(self) -> tuple[int, int]:
        """Of the jump and of the host."""
        return self.door.logins, self.host.logins


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    servers = Sshds(tmp_path)
    door, host = servers.start(), servers.start()
    known = tmp_path / "users_known_hosts"
    known.write_text(door.known)
    config = tmp_path / "jump_config"
    config.write_text(
        f"Host door\n  HostName {door.address}\n  Port {door.port}\n  User {USER}\n  UserKnownHostsFile {known}\n"
        f"  IdentityFile {servers.key_file}\nHost {host.address}\n  ProxyJump door\n"
    )
    folder = tmp_path / f"ways{os.getpid()}"
    folder.mkdir()
    artifacts = FIXTURES / "artifacts"
    static = {"address": host.address, "port": host.port, "user": USER, "ssh_host_key": host.key}
    data = {
        "fleet": folder.name,
        "pools": {
            "h200": {
                "host_class": "h200-8",
                "cloud": "static",
                "model": "openai/gpt-oss-120b",
                "static": {"h200-0": static},
            }
        },
        "access": {"ssh_private_key_file": str(servers.key_file)},
        "artifacts": {
            "models": {"openai/gpt-oss-120b": str(artifacts / "gpt-oss-120b")},
            "encodings": str(artifacts / "encodings"),
        },
    }
    (folder / "fleet.yml").write_text(yaml.safe_dump(data))
    yield Fleet(folder, door, host, config)
    servers.stop()
    shutil.rmtree(paths.run_dir(folder.name), ignore_errors=True)


def options_file(fleet: Fleet, text: str) -> Path:
    """An ``ansible.cfg`` with other arguments of ssh."""
    file = fleet.folder / "ansible.cfg"
    own = (paths.root() / "ansible.cfg").read_text()
    own = own.replace("= plugins/", f"= {paths.root()}/plugins/").replace("= roles", f"= {paths.root()}/roles")
    file.write_text(
        "".join(f"ssh_args = {text}\n" if line.startswith("ssh_args") else line for line in own.splitlines(True))
    )
    return file


@pytest.mark.parametrize(
    "place",
    [
        "nothing",
        "ANSIBLE_SSH_ARGS",
        "ANSIBLE_SSH_EXTRA_ARGS",
        "ansible.cfg",
        "host_vars",
        "-e common",
        "--ssh-extra-args",
    ],
)
def test_the_probe_and_ansible_take_the_same_way(fleet: Fleet, place: str) -> None:
    words: list[str] = []
    environment = {}
    way = f"-F {fleet.jump_config} -o ControlPath=none"
    if place.startswith("ANSIBLE_"):
        environment[place] = way
    elif place == "ansible.cfg":
        environment["ANSIBLE_CONFIG"] = str(options_file(fleet, way))
    elif place == "host_vars":
        (fleet.folder / "host_vars").mkdir()
        (fleet.folder / "host_vars" / "h200-0.yml").write_text(f"ansible_ssh_extra_args: {way}\n")
    elif place == "-e common":
        known = paths.run_dir(fleet.folder.name) / "known_hosts"
        name = f"[{fleet.host.address}]:{fleet.host.port}"
        words = ["-e", f"ansible_ssh_common_args='{way} -o UserKnownHostsFile={known} -o HostKeyAlias={name}'"]
    elif place == "--ssh-extra-args":
        words = [f"--ssh-extra-args={way}"]
    jumps = int(place != "nothing")
    out = fleet.run("ansible", "all", "-m", "ansible.builtin.ping", *words, environment=environment)
    assert "pong" in out, out
    assert fleet.logins() == (jumps, 1)
    out = fleet.run("ansible-playbook", "playbooks/probe.yml", *words, environment=environment)
    assert fleet.logins() == (2 * jumps, 2), out


@pytest.fixture
def users_ssh(tmp_path: Path) -> Iterator[Path]:
    """A folder that commands under :func:`as_user` see as the ``~/.ssh`` of the account."""
    folder, real = tmp_path / "users_ssh", user_home() / ".ssh"
    folder.mkdir()
    made = not real.exists()
    real.mkdir(exist_ok=True)
    yield folder
    if made:
        real.rmdir()


def as_user(users_ssh: Path, *words: str | Path) -> list[str | Path]:
    """A command in a mount namespace of its own, where this machine's ``~/.ssh`` is not touched."""
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", users_ssh, user_home() / ".ssh", *words]


def test_init_and_ansible_take_a_host_of_the_users_configuration(
    tmp_path: Path, users_ssh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(tmp_path / "inventories"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    write_files(tmp_path / "tools", gpu.tools("h200-8"))
    servers = Sshds(tmp_path)
    try:
        door = servers.start()
        path = f"{tmp_path}/tools/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        host = servers.start(options={"SetEnv": f"PATH={path}"})
        (users_ssh / "known_hosts").write_text(door.known)
        (users_ssh / "hosts").write_text(
            f"Host gpu-1\n  HostName {host.address}\n  Port {host.port}\n  ProxyJump door\n"
            f"Host door\n  HostName {door.address}\n  Port {door.port}\n"
        )
        (users_ssh / "config").write_text(
            f'Include hosts\nMatch originalhost gpu-1,door\n  User {USER}\n  IdentityFile "{servers.key_file}"\n'
        )
        known = f"gpu-1={fingerprint(host.key)}"
        words = ("vllm-fleet", "init", FLEET, "--host", "gpu-1", "--fingerprint", known, "--yes")
        done = subprocess.run(as_user(users_ssh, *words), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Your own ssh configuration has the way to gpu-1" in done.stderr
        assert door.logins == 2  # for the host key, and for the facts
        file = tmp_path / "inventories" / FLEET / "fleet.yml"
        written = yaml.safe_load(file.read_text())
        assert written["pools"]["h200"]["static"]["h200-0"] == {
            "address": host.address,
            "port": host.port,
            "ssh_alias": "gpu-1",
            "ssh_host_key": host.key,
        }
        written["artifacts"] = {
            "models": {"openai/gpt-oss-120b": str(FIXTURES / "artifacts" / "gpt-oss-120b")},
            "encodings": str(FIXTURES / "artifacts" / "encodings"),
        }
        file.write_text(yaml.safe_dump(written))
        ping = ("ansible", "-i", file, "all", "-m", "ansible.builtin.ping")
        done = subprocess.run(
            as_user(users_ssh, *ping),
            cwd=paths.root(),
            capture_output=True,
            text=True,
            check=False,
            timeout=HANGING_SECONDS,
        )
        assert "pong" in done.stdout, done.stdout + done.stderr
        assert (door.logins, host.logins) == (3, 2)
    finally:
        servers.stop()
        shutil.rmtree(paths.run_dir(FLEET), ignore_errors=True)
