"""Cleans up after a killed ``pulumi``: stale locks, open creations, and processes without an engine.

Run ``python -m infra.repair STACK`` before ``pulumi up``; it takes milliseconds when there is nothing to clean up.
The engine does not detect stale locks. It warns at each run of a creation that was interrupted, because that may have
left something in a cloud. The project's own resources are found again by their names, so this module drops their
entries. An entry of a real cloud is an error until an operator has checked the cloud and passes ``--adopt HOST=ID`` or
``--gone HOST``: the next run would create it a second time.

Where the state is not in a folder, a lock does not tell whether its holder has ended: ``pulumi cancel`` removes it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from infra import backend
from infra.adopt import names_in_clouds, pending_creations, settle
from infra.tries import interrupted
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.processes import command_line, find_process, kill_process, process_ids
from vllm_fleet.edge.pulumi_cli import pulumi_output


def is_stale(lock: Path, machine: str, processes: Path = Path("/proc")) -> bool:
    """Whether the ``pulumi`` that took a lock ran on this machine and has ended.

    Args:
        lock: the lock file.
        machine: this machine's name.
        processes: the folder of the machine's processes.
    """
    try:
        held = json.loads(lock.read_text(encoding="utf-8"))
        machine_of_lock, pid = str(held["hostname"]), int(held["pid"])
    except (ValueError, KeyError, TypeError):
        return True  # writing the lock was interrupted
    if machine_of_lock != machine:
        return False
    try:
        stat = (processes / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return True
    name, state = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2]
    # Another program may have the number now; a zombie has ended.
    return state == "Z" or not name.startswith("pulumi")


def drop_stale_locks(folder: Path, stack: str) -> list[Path]:
    """Removes the stale locks on a stack and returns them."""
    locks = (path for path in folder.glob(f"locks/**/{stack}/*.json") if path.is_file())
    stale = [lock for lock in locks if is_stale(lock, socket.gethostname())]
    for lock in stale:
        lock.unlink(missing_ok=True)
        lock.with_name(f"{lock.name}.attrs").unlink(missing_ok=True)
    return stale


def engine_address(words: Sequence[str]) -> tuple[str, int] | None:
    """The address of the engine in a command line; None when it is not one of Pulumi.

    Args:
        words: the command line of a process, such as a language host or a provider of Python resources.
    """
    parts = [Path(word).name for word in words]
    if not words or not ({"pulumi-language-python", "pulumi-resource-pulumi-python", "pulumi.dynamic"} & set(parts)):
        return None
    host, _, port = words[-1].rpartition(":")
    return (host, int(port)) if host and port.isdigit() else None


def end_orphans() -> list[int]:
    """Kills language hosts and providers whose engine has ended; they would wait for it for ever.

    Returns:
        The numbers of the processes that were killed.
    """
    ended: list[int] = []
    for pid in process_ids():
        address = engine_address(command_line(pid))
        orphan = find_process(pid) if address else None
        if address and orphan and not _listens(address):
            kill_process(orphan)
            ended.append(orphan.pid)
    return ended


def _listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True  # a busy machine does not prove that the engine has ended
    return True


def repair(backend_url: str, stack: str) -> bool:
    """Cleans up a stack after a killed run.

    Returns:
        Whether there was anything to clean up.

    Raises:
        FleetError: ``pulumi`` failed.
    """
    orphans = end_orphans()
    if orphans:
        print(f"killed {len(orphans)} processes that a killed pulumi left behind", file=sys.stderr)
    folder = backend.folder(backend_url)
    locks = drop_stale_locks(folder, stack) if folder else []
    for lock in locks:
        print(f"removed the lock of a killed pulumi: {lock.name}", file=sys.stderr)
    urns = open_creations(backend_url, stack)
    if urns and not names_in_clouds(urns):
        _clear(stack, len(urns))
    return bool(orphans or locks or urns)


def open_creations(backend_url: str, stack: str) -> list[str]:
    """The URNs of the creations that the state of a stack holds as open.

    Raises:
        FleetError: ``pulumi`` failed.
    """
    return list(pending_creations(backend.deployment(backend_url, stack)))


def _clear(stack: str, count: int) -> None:
    print(f"a killed pulumi left {count} creations unfinished: refreshing the state", file=sys.stderr)
    words = ("refresh", "--stack", stack, "--clear-pending-creates", "--yes", "--skip-preview", "--non-interactive")
    pulumi_output(*words)


def main() -> int:
    """The command line; the exit code is 0, or that of the error."""
    parser = argparse.ArgumentParser(prog="python -m infra.repair", description=__doc__)
    parser.add_argument("stack")
    parser.add_argument(
        "--adopt", metavar="HOST=ID", action="append", default=[], help="a host that exists in the cloud"
    )
    parser.add_argument("--gone", metavar="HOST", action="append", default=[], help="a host that does not exist")
    chosen = parser.parse_args()
    url = os.environ.get("PULUMI_BACKEND_URL", "")
    try:
        backend.check_stack(url, chosen.stack)
        done = repair(url, chosen.stack)
        if chosen.adopt or chosen.gone:
            settle(chosen.stack, chosen.adopt, chosen.gone)
        if names := names_in_clouds(open_creations(url, chosen.stack)):
            raise interrupted(chosen.stack, names, names)
        if not (done or chosen.adopt or chosen.gone):
            print(f"{chosen.stack}: no run left anything behind", file=sys.stderr)
    except FleetError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
