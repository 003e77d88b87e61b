"""The same work for the peers: one changed file with a restart, and a new host up to its first completion.

They get what Ansible and pyinfra are usually given: an operation for each item, in the order of the manifest. The files
come rendered, one folder for each host, so that no peer pays for templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from bench import lab_fleet, peers
from bench.peers import Check
from vllm_fleet.host.manifest_items import Item

#: In a path of a copy; each peer puts the name of the host there.
HOST = "@HOST@"
#: What is on every host from the start, and what the instance writes itself. The firewall's unit loads its table.
_GIVEN_ROLES = frozenset({"vllm_engine", "model_store", "harmony_encodings"})
_GIVEN_KINDS = frozenset({"traffic", "keys", "table"})
_RUN = "/run/"
#: The groups of the account, and directories that the manifest has no items for.
_GROUPS = ("video", "render")
_CURRENT = "/opt/vllm/current"


def items_of_new_host(items: Iterable[Item]) -> list[Item]:
    """The items of a manifest that a contender has to set up on a new host.

    Args:
        items: the manifest's items.
    """
    return [
        item
        for item in items
        if item["role"] not in _GIVEN_ROLES
        and item["kind"] not in _GIVEN_KINDS
        and not str(item.get("path", "")).startswith(_RUN)
    ]


def new_host(items: Sequence[Item], copies: Mapping[str, Path]) -> list[Check]:
    """The operations that set up a new host, up to an instance that has answered.

    Args:
        items: those of :func:`items_of_new_host`.
        copies: path on the host -> its copy, with :data:`HOST` in it.
    """
    known = {str(item["path"]) for item in items if item["kind"] == "directory"}
    parents = {str(Path(str(item["path"])).parent) for item in items if item["kind"] in ("file", "link")}
    missing = sorted(
        parent for parent in parents if parent not in known and parent.startswith(("/etc", "/usr/local", "/opt"))
    )
    groups = [
        Check(f"group {name}", "group", {"name": name, "system": True}, "server.group", {"group": name})
        for name in _GROUPS
    ]
    folders = peers.checks([_directory(path) for path in missing if path not in _OF_THE_SYSTEM], {})
    checks = [_with_reload(check) for check in peers.checks(items, copies)]
    accounts = [check for check in checks if check.module in ("apt", "user")]
    return [*accounts[:1], *groups, *accounts[1:], *folders, *(check for check in checks if check not in accounts)]


#: They are on every Debian.
_OF_THE_SYSTEM = frozenset(
    {"/etc/sysctl.d", "/etc/security/limits.d", "/etc/apt/apt.conf.d", "/etc/systemd/system", "/etc"}
)


def _directory(path: str) -> Item:
    return {"role": "", "kind": "directory", "path": path, "mode": "0755", "owner": "root", "group": "root"}


def _with_reload(check: Check) -> Check:
    """Units of files that are new: systemd must read them first."""
    if check.module != "systemd_service":
        return check
    reload = {"daemon_reload": True}
    return Check(check.name, check.module, {**check.arguments, **reload}, check.operation, {**check.keywords, **reload})


def playbook_text(checks: Sequence[Check]) -> str:
    """The operations as a playbook."""
    return peers.playbook_text(checks).replace(HOST, "{{ inventory_hostname }}")


def pyinfra_text(checks: Sequence[Check]) -> str:
    """The operations as a deploy of pyinfra."""
    text = re.sub(rf"'([^']*{HOST}[^']*)'", rf"'\1'.replace('{HOST}', host.name)", peers.pyinfra_deploy_text(checks))
    return f"from pyinfra import host\n{text}"


def change_playbook_text(copy: Path) -> str:
    """The changed file and the restart as a playbook.

    Args:
        copy: the new file, with :data:`HOST` in it.
    """
    write = {
        "src": str(copy).replace(HOST, "{{ inventory_hostname }}"),
        "dest": lab_fleet.CONFIG,
        "owner": "root",
        "group": "root",
        "mode": "0600",
    }
    tasks = [
        {"name": "Write the config", "ansible.builtin.copy": write, "register": "config"},
        {
            "name": "Restart the instance",
            "ansible.builtin.systemd_service": {"name": lab_fleet.UNIT, "state": "restarted"},
            "when": "config is changed",
        },
    ]
    return yaml.safe_dump([{"name": "Change", "hosts": "all", "become": True, "tasks": tasks}], sort_keys=False)


def change_pyinfra_text(copy: Path) -> str:
    """The changed file and the restart as a deploy of pyinfra.

    Args:
        copy: the new file, with :data:`HOST` in it.
    """
    return (
        "from pyinfra import host\n"
        "from pyinfra.operations import files, systemd\n"
        "\n"
        f"config = files.put(name='config', src={str(copy)!r}.replace({HOST!r}, host.name), dest={lab_fleet.CONFIG!r}, "
        "mode='0600', user='root', group='root', create_remote_dir=False, _sudo=True)\n"
        f"systemd.service(name='restart', service={lab_fleet.UNIT!r}, running=True, restarted=True, "
        "_if=config.did_change, _sudo=True)\n"
    )
