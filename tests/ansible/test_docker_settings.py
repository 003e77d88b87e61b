"""The module that merges settings into docker's daemon.json: what it adds, what it refuses, what it leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from run_module import run_module

OURS = {
    "live-restore": True,
    "insecure-registries": ["10.0.0.2:5000"],
    "runtimes": {"nvidia": {"path": "nvidia-container-runtime"}},
}
#: As nvidia-ctk 1.17 writes it, beside settings of others, in a formatting of its own.
THEIRS = """\
{ "data-root": "/data/docker",
      "runtimes": {"nvidia": {"args": [], "path": "/usr/bin/nvidia-container-runtime"}},
  "insecure-registries": ["registry.example:80"], "log-driver": "journald" }
"""


class Host:
    """A folder with a daemon.json, and commands that answer as those of a host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "etc" / "daemon.json"
        self.record = folder / "record" / "docker.json"
        self.commands = folder / "bin"
        self.commands.mkdir()
        for name in ("dpkg-query", "systemctl", "dockerd", "docker", "apt-get", "pgrep"):
            self.command(name, "exit 1")

    def command(self, name: str, script: str) -> None:
        (self.commands / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (self.commands / name).chmod(0o755)

    def installed(self, package: str, version: str = "Docker version 28.0.1, build 068a01e") -> None:
        self.command("dpkg-query", f'for last; do :; done; [ "$last" = {package} ] && echo installed')
        self.command("dockerd", f"echo '{version}'")

    def write(self, text: str) -> None:
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(text, encoding="utf-8")

    def merge(self, ours: dict[str, Any] = OURS, *, check: bool = False) -> dict[str, Any]:
        arguments = {
            "settings": json.dumps(ours),
            "defaults": json.dumps({"log-opts": {"max-size": "50m"}}),
            "path": str(self.file),
            "record": str(self.record),
        }
        return run_module("docker_settings", self.folder, arguments, check=check, path=self.commands)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_new_file_gets_the_settings_and_the_defaults(host: Host) -> None:
    result = host.merge(check=True)
    assert (result["changed"], host.file.exists()) == (True, False)
    assert '"live-restore": true' in result["diff"]["after"]
    assert host.merge()["changed"] is True
    assert json.loads(host.file.read_text()) == {**OURS, "log-opts": {"max-size": "50m"}}
    assert host.merge()["changed"] is False
    assert json.loads(host.record.read_text())["created"] is True


def test_settings_of_others_stay_with_owner_and_mode(host: Host) -> None:
    host.installed("docker-ce")
    host.write(THEIRS)
    os.chown(host.file, os.getuid(), os.getgid())
    host.file.chmod(0o640)
    result = host.merge()
    assert (result["changed"], result["package"]) == (True, "docker-ce")
    merged = json.loads(host.file.read_text())
    theirs = json.loads(THEIRS)
    assert {key: merged[key] for key in ("data-root", "runtimes", "log-driver")} == {
        key: theirs[key] for key in ("data-root", "runtimes", "log-driver")
    }
    assert merged["insecure-registries"] == ["registry.example:80", "10.0.0.2:5000"]
    assert merged["live-restore"] is True
    # The defaults are for a file of our own: docker does not start with log-opts of another log-driver.
    assert "log-opts" not in merged
    assert host.file.stat().st_mode & 0o7777 == 0o640
    assert host.merge()["changed"] is False
    record = json.loads(host.record.read_text())
    assert record["created"] is False
    assert sorted(map(str, record["added"])) == [
        "['insecure-registries', None, '10.0.0.2:5000']",
        "['live-restore', True]",
    ]


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        ('{"live-restore": false}', "settings_differ", "another live-restore"),
        ('{"runtimes": {"nvidia": {"path": "/usr/bin/runc"}}}', "settings_differ", "another runtimes.nvidia.path"),
        ('{"insecure-registries": "all"}', "settings_differ", "another insecure-registries"),
        ('{"runtimes": []}', "settings_differ", "another runtimes"),
        ("{'a': 1}", "settings_differ", "cannot be read"),
        ("[]", "settings_differ", "cannot be read"),
    ],
)
def test_another_value_is_named_and_nothing_is_written(host: Host, text: str, code: str, part: str) -> None:
    host.installed("docker-ce")
    host.write(text)
    result = host.merge()
    assert result["failed"] is True
    assert code in result["codes"]
    assert part in result["msg"]
    assert host.file.read_text() == text
    assert not host.record.exists()


#: What apt says on Debian 12 beside the packages of download.docker.com: docker.io conflicts with docker-ce and
#: docker-ce-cli (its control file), containerd.io conflicts with containerd and runc (docker/containerd-packaging).
SIMULATED = "Remv docker-ce [5:28.0.1-1]\\nRemv containerd.io [1.7.27-1]\\nInst docker.io (20.10.24 Debian [amd64])"


def test_packages_that_apt_would_remove_are_named(host: Host) -> None:
    """A host with containerd.io alone, as a node of Kubernetes has it."""
    host.command("apt-get", f'[ "$1" = -s ] && printf "{SIMULATED}\\n"')
    result = host.merge()
    assert result["codes"] == ["would_remove"]
    assert "apt would remove containerd.io, docker-ce:" in result["msg"]
    assert not host.file.exists()


def test_a_docker_that_is_too_old_is_refused(host: Host) -> None:
    host.installed("docker-ce", "Docker version 19.03.15, build 99e3ed8919")
    result = host.merge()
    assert result["codes"] == ["unusable_docker"]
    assert "docker-ce is 19.3" in result["msg"]


def test_podman_in_the_place_of_docker_is_refused(host: Host) -> None:
    host.installed("podman-docker")
    result = host.merge()
    assert result["codes"] == ["unusable_docker"]
    assert "podman-docker" in result["msg"]


def test_a_node_of_a_swarm_is_refused(host: Host) -> None:
    """dockerd: --live-restore daemon configuration is incompatible with swarm mode."""
    host.installed("docker-ce")
    host.command("docker", "echo active")
    assert host.merge()["codes"] == ["unusable_docker"]


def test_a_setting_on_the_command_line_is_not_put_into_the_file(host: Host) -> None:
    """dockerd does not start with a directive both as a flag and in the file."""
    host.installed("docker-ce")
    sleeper = host.folder / "sleep"
    sleeper.write_text("#!/bin/sh\nread never\n")
    sleeper.chmod(0o755)

    with subprocess.Popen([sleeper, "--live-restore"], stdin=subprocess.PIPE) as process:
        host.command("systemctl", f'case "$*" in *MainPID*) echo {process.pid};; esac')
        result = host.merge()
        process.kill()
    assert result["codes"] == ["settings_differ"]
    assert "--live-restore on its command line" in result["msg"]
