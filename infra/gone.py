"""What the fleet's folder forgets once a host is gone: its entry in each file that a run writes.

The SSH host key of a host is made before the host and deleted after it: its deletion says that the host is gone.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

from infra.tries import read_tries, write_tries
from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.fleet import host_keys_file

#: The engine deletes several keys at once, in one process.
_ALONE = threading.Lock()


def forget(fleet: str, host: str) -> None:
    """Removes a host from the files of this checkout. In another one the next run writes them.

    Args:
        fleet: the fleet.
        host: the host, which no longer exists.

    Raises:
        FleetError: a file cannot be read; the key stays in the state, and the next run tries again.
    """
    folder = paths.inventories_dir() / fleet
    with _ALONE:
        _forget_made(folder / "stack.json", host)
        tries = read_tries(folder)
        if tries.pop(host, None):
            write_tries(folder, tries)
        _forget_key(folder, host)


def inventory_text(inventory: object) -> str:
    """The text of ``stack.json``, as ``pulumi stack output inventory --json`` prints it."""
    return json.dumps(inventory, indent=2, sort_keys=True) + "\n"


def _forget_made(file: Path, host: str) -> None:
    if not file.is_file():
        return
    stack = json.loads(file.read_text(encoding="utf-8"))
    if stack.get("hosts", {}).pop(host, None) is None:
        return
    left = {record.get("network") for record in stack["hosts"].values()}
    if networks := {name: range_ for name, range_ in stack.pop("networks", {}).items() if name in left}:
        stack["networks"] = networks
    write_atomically(file, inventory_text(stack), 0o644)


def _forget_key(folder: Path, host: str) -> None:
    kept = host_keys_file.load(folder)
    if host in kept.keys:
        keys = {name: tuple(found) for name, found in kept.keys.items() if name != host}
        ids = {name: id_ for name, id_ in kept.hosts.items() if name in keys}
        write_atomically(folder / host_keys_file.FILE, host_keys_file.text(keys, ids), 0o644)
