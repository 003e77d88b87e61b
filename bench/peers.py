"""The manifest of the hosts for the peers: the same checks as tasks of Ansible and operations of pyinfra."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench import fleets
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.host.manifest_items import Item

#: The settings for speed in Ansible's documentation.
TUNED_CFG = """\
[defaults]
forks = 25
gathering = explicit
internal_poll_interval = 0.001
[ssh_connection]
pipelining = True
ssh_args = -C -o ControlMaster=auto -o ControlPersist=300s -o PreferredAuthentications=publickey
"""


#: No module of a peer reads the state of HAProxy's servers, its keys or the end of a certificate, so these checks are
#: left out.
LEFT_OUT = frozenset({"traffic", "keys", "certificate"})


@dataclass(frozen=True)
class Check:
    """One check: the module or operation of each peer with its arguments."""

    name: str
    module: str
    arguments: Mapping[str, Any]
    operation: str
    keywords: Mapping[str, Any]


def checks(items: Sequence[Item], copies: Mapping[str, Path]) -> list[Check]:
    """The items of a manifest as checks; all packages are one check, as is usual for both peers.

    Args:
        items: the items.
        copies: path on the host -> copy of that file on the controller.

    Raises:
        FleetError: an item of a kind that has no check here yet.
    """
    packages = [item["name"] for item in items if item["kind"] == "package"]
    packages_check = []
    if packages:
        packages_check.append(
            Check(
                "packages",
                "apt",
                {"name": packages, "state": "present"},
                "apt.packages",
                {"packages": packages, "present": True},
            )
        )
    return packages_check + [_check(item, copies) for item in items if item["kind"] not in {"package", *LEFT_OUT}]


def _check(item: Item, copies: Mapping[str, Path]) -> Check:
    match item:
        case {"kind": "user", "name": name, "home": home, "shell": shell}:
            return Check(
                f"user {name}",
                "user",
                {"name": name, "home": home, "shell": shell, "create_home": False},
                "server.user",
                {"user": name, "home": home, "shell": shell, "ensure_home": False},
            )
        case {"kind": "directory", "path": path, "mode": mode, "owner": owner, "group": group}:
            return Check(
                f"directory {path}",
                "file",
                {"path": path, "state": "directory", "mode": mode, "owner": owner, "group": group},
                "files.directory",
                {"path": path, "mode": mode, "user": owner, "group": group},
            )
        case {"kind": "file", "path": path, "absent": True}:
            return Check(
                f"no file {path}",
                "file",
                {"path": path, "state": "absent"},
                "files.file",
                {"path": path, "present": False},
            )
        case {"kind": "file", "path": path, "sha256": _, "mode": mode, "owner": owner, "group": group}:
            source = str(copies[str(path)])
            return Check(
                f"file {path}",
                "copy",
                {"src": source, "dest": path, "mode": mode, "owner": owner, "group": group},
                "files.put",
                {"src": source, "dest": path, "mode": mode, "user": owner, "group": group, "create_remote_dir": False},
            )
        case {"kind": "link", "path": path, "target": target}:
            return Check(
                f"link {path}",
                "file",
                {"path": path, "src": target, "state": "link"},
                "files.link",
                {"path": path, "target": target},
            )
        case {"kind": "unit", "name": name, **wanted}:
            arguments: dict[str, Any] = {"name": name}
            keywords: dict[str, Any] = {"service": name, "running": None}
            if "active" in wanted:
                arguments["state"] = "started" if wanted["active"] else "stopped"
                keywords["running"] = wanted["active"]
            if "enabled" in wanted:
                arguments["enabled"] = keywords["enabled"] = wanted["enabled"]
            return Check(f"unit {name}", "systemd_service", arguments, "systemd.service", keywords)
    raise FleetError(
        f"bench/peers.py has no check for the kind {item['kind']!r} with the keys {sorted(item)}", "add one there"
    )


def copy_files(items: Iterable[Item], root: Path, folder: Path) -> dict[str, Path]:
    """Copies the manifest's files from the deployed host, so that the peers compare the same content.

    Args:
        items: the manifest's items.
        root: the host's root folder.
        folder: where the copies go.

    Raises:
        FleetError: a file on the host differs from the manifest.
    """
    folder.mkdir()
    copies: dict[str, Path] = {}
    for item in items:
        if item["kind"] != "file" or item.get("absent"):
            continue
        content = (root / item["path"].lstrip("/")).read_bytes()
        if hashlib.sha256(content).hexdigest() != item["sha256"]:
            raise FleetError(
                "differs from its manifest after the deployment", file=item["path"], code=ErrorCode.WORK_FAILED
            )
        copies[item["path"]] = folder / f"{len(copies):02d}-{Path(item['path']).name}"
        copies[item["path"]].write_bytes(content)
    return copies


def playbook_text(checks: Sequence[Check]) -> str:
    """The checks as a playbook."""
    tasks = [
        {"name": f"Check the {check.name}", f"ansible.builtin.{check.module}": check.arguments} for check in checks
    ]
    return yaml.safe_dump([{"name": "Check", "hosts": "all", "become": True, "tasks": tasks}], sort_keys=False)


def ansible_inventory_text(addresses: Mapping[str, str], private_key: Path, known_hosts: Path) -> str:
    """An inventory with strict host keys, and with the interpreter, whose discovery would cost a connection.

    Args:
        addresses: host -> address.
        private_key: the file of the login's private key.
        known_hosts: the file of the host keys.
    """
    connection = {
        "ansible_user": fleets.USER,
        "ansible_ssh_private_key_file": str(private_key),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={known_hosts} -o StrictHostKeyChecking=yes",
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    hosts = {name: {"ansible_host": address} for name, address in addresses.items()}
    return yaml.safe_dump({"all": {"vars": connection, "hosts": hosts}}, sort_keys=False)


def pyinfra_deploy_text(checks: Sequence[Check]) -> str:
    """The checks as a deploy of pyinfra."""
    lines = ["from pyinfra.operations import apt, files, server, systemd", ""]
    for check in checks:
        keywords = ", ".join(f"{key}={value!r}" for key, value in check.keywords.items())
        lines.append(f"{check.operation}(name={check.name!r}, {keywords}, _sudo=True)")
    return "\n".join(lines) + "\n"


def pyinfra_inventory_text(addresses: Mapping[str, str], private_key: Path, known_hosts: Path) -> str:
    """An inventory with strict host keys.

    Args:
        addresses: host -> address.
        private_key: the file of the login's private key.
        known_hosts: the file of the host keys.
    """
    shared = {
        "ssh_user": fleets.USER,
        "ssh_key": str(private_key),
        "ssh_known_hosts_file": str(known_hosts),
        "ssh_strict_host_key_checking": "yes",
        "ssh_allow_agent": False,
        "ssh_look_for_keys": False,
    }
    hosts = [(name, {"ssh_hostname": address}) for name, address in addresses.items()]
    return f"shared = {shared!r}\nhosts = [(name, {{**shared, **own}}) for name, own in {hosts!r}]\n"
