"""The files of a host on top of the shared tree: as data, and how they are written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.spec import HostSpec, NetworkSpec
from vllm_fleet.base.atomic_files import write_atomically

_USER_ID = 1000
_HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
_NETWORKD = "etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
_CGROUPS_UNIT = "etc/systemd/system/lab-cgroups.service"
#: nspawn mounts the controllers of cgroup v1 read-only; a container engine creates groups in them.
_CGROUPS = """\
[Unit]
Description=Let a container engine make cgroups
Before=docker.service containerd.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/lab-cgroups
"""
_CGROUPS_PROGRAM = """\
#!/bin/sh
mount -o remount,rw /sys/fs/cgroup
while read -r _ at kind _; do
    [ "$kind" != cgroup ] || mount -o remount,rw,bind "$at"
done </proc/self/mounts
"""
#: They would take dpkg's lock during a playbook.
_MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer")


@dataclass(frozen=True)
class File:
    """A file of the host.

    Attributes:
        text: its content.
        mode: its permissions.
        owner: user and group number.
    """

    text: str
    mode: int = 0o644
    owner: int = 0


def host_files(spec: HostSpec, private_host_key: str, machine_id: str) -> dict[str, File]:
    """Path -> file, for the files that differ from the shared tree.

    Args:
        spec: the host.
        private_host_key: its SSH host key, in OpenSSH's format.
        machine_id: 32 hexadecimal digits, unique.
    """
    return {
        "etc/hostname": File(f"{spec.name}\n"),
        "etc/machine-id": File(f"{machine_id}\n", 0o444),
        "etc/systemd/network/10-lab.network": File(_network(spec)),
        "etc/ssh/sshd_config.d/10-lab.conf": File(_sshd(spec.user)),
        _HOST_KEY: File(private_host_key, 0o600),
        f"{_HOST_KEY}.pub": File(f"{spec.host_key}\n"),
        "etc/sudoers.d/10-lab": File(f"{spec.user} ALL=(ALL) NOPASSWD: ALL\n", 0o440),
        **(container_files() if spec.containers else {}),
        **changeable_files(spec),
    }


def container_files() -> dict[str, File]:
    """The part of :func:`host_files` for a container engine."""
    return {_CGROUPS_UNIT: File(_CGROUPS), "usr/local/sbin/lab-cgroups": File(_CGROUPS_PROGRAM, 0o755)}


def changeable_files(spec: HostSpec) -> dict[str, File]:
    """The part of :func:`host_files` that an update may change while the host runs."""
    owner = 0 if spec.user == "root" else _USER_ID
    return {
        "etc/hosts": File(_hosts(spec)),
        f"{_home(spec.user)}/.ssh/authorized_keys": File(f"{spec.authorised_key}\n", 0o600, owner),
    }


def host_links(spec: HostSpec) -> dict[str, str]:
    """Path -> target of the host's symbolic links: units that are enabled or masked from the start."""
    masked = {f"etc/systemd/system/{unit}": "/dev/null" for unit in _MASKED}
    wanted = {_NETWORKD: "/lib/systemd/system/systemd-networkd.service"}
    if spec.containers:
        wanted["etc/systemd/system/multi-user.target.wants/lab-cgroups.service"] = f"/{_CGROUPS_UNIT}"
    return {**wanted, **masked}


def with_user(user: str, passwd: str, shadow: str, group: str) -> tuple[str, str, str]:
    """The account files with the login user added, without a password and not locked.

    With ``!`` as the password, sshd would refuse the key too; with ``*``, only no password matches.

    Args:
        user: the user to add; root exists already.
        passwd: the text of ``/etc/passwd``.
        shadow: the text of ``/etc/shadow``.
        group: the text of ``/etc/group``.
    """
    if any(line.startswith(f"{user}:") for line in passwd.splitlines()):
        return passwd, shadow, group
    return (
        f"{passwd}{user}:x:{_USER_ID}:{_USER_ID}::/{_home(user)}:/bin/sh\n",
        f"{shadow}{user}:*:20000:0:99999:7:::\n",
        f"{group}{user}:x:{_USER_ID}:\n",
    )


def write_files(root: Path, files: Mapping[str, File]) -> None:
    """Writes files below a root folder, each atomically."""
    for name, file in files.items():
        path = root / name
        write_atomically(path, file.text, file.mode)
        os.chown(path, file.owner, file.owner)


def write_links(root: Path, links: Mapping[str, str]) -> None:
    """Creates symbolic links below a root folder."""
    for name, target in links.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)


def add_user(root: Path, user: str) -> None:
    """Adds the login user and its home below a root folder."""
    paths = [root / "etc" / name for name in ("passwd", "shadow", "group")]
    before = [path.read_text(encoding="utf-8") for path in paths]
    for path, text in zip(paths, with_user(user, *before), strict=True):
        known = path.stat()
        write_atomically(path, text, known.st_mode & 0o777)
        os.chown(path, known.st_uid, known.st_gid)
    owner = 0 if user == "root" else _USER_ID
    home = root / _home(user)
    for folder, mode in ((home, 0o755), (home / ".ssh", 0o700)):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)
        os.chown(folder, owner, owner)


def _home(user: str) -> str:
    return "root" if user == "root" else f"home/{user}"


def _hosts(spec: HostSpec) -> str:
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    names = {**spec.peers, spec.name: spec.address}
    return "".join(f"{line}\n" for line in (*lines, *(f"{names[name]} {name}" for name in sorted(names))))


def _network(spec: HostSpec) -> str:
    lab = NetworkSpec(bridge=spec.bridge, subnet=spec.subnet, owner="", disk_gib=0)
    return (
        "[Match]\nName=host0\n\n"
        f"[Network]\nAddress={spec.address}/{lab.network.prefixlen}\nGateway={lab.gateway}\n"
        "LinkLocalAddressing=no\nIPv6AcceptRA=no\n"
    )


def _sshd(user: str) -> str:
    return (
        f"HostKey /{_HOST_KEY}\n"
        "PasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\n"
        f"PermitRootLogin {'prohibit-password' if user == 'root' else 'no'}\n"
        "UseDNS no\n"
    )
