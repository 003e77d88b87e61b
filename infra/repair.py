"""What a killed ``pulumi`` leaves behind, put right: locks, open creations, and processes that nobody talks to.

``python -m infra.repair STACK`` before ``pulumi up``; it does nothing, in milliseconds, where nothing was killed.
The engine cannot tell a stale lock, and it would warn for ever of a creation that was cut off, as it may have left
something in a cloud. The lab's own resources are found again by their names, so their entries may go; an entry of
a real cloud stays for a person to judge, who says ``--adopt HOST=ID`` or ``--gone HOST``.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from lab import process
from vllm_fleet.base.errors import FleetError

_OWN_TYPES = "pulumi-python:dynamic/"


def backend_dir(backend_url: str) -> Path | None:
    """The folder of a ``file://`` backend; None for another kind."""
    url = urlparse(backend_url)
    return Path(unquote(f"{url.netloc}{url.path}")).expanduser() / ".pulumi" if url.scheme == "file" else None


def is_stale(lock: Path, machine: str, processes: Path = Path("/proc")) -> bool:
    """Whether the ``pulumi`` that took a lock ran on this machine and is gone.

    Args:
        lock: the lock's file.
        machine: this machine's name.
        processes: the folder of the machine's processes.
    """
    try:
        held = json.loads(lock.read_text(encoding="utf-8"))
        machine_of_lock, pid = str(held["hostname"]), int(held["pid"])
    except (ValueError, KeyError, TypeError):
        return True  # the writing of the lock was cut off itself
    if machine_of_lock != machine:
        return False
    try:
        stat = (processes / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return True
    name, state = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2]
    # The number may be another program's by now; a zombie only waits for its parent.
    return state == "Z" or not name.startswith("pulumi")


def drop_stale_locks(backend: Path, stack: str) -> list[Path]:
    """Removes the stale locks on a stack and returns them."""
    locks = (path for path in backend.glob(f"locks/**/{stack}/*.json") if path.is_file())
    stale = [lock for lock in locks if is_stale(lock, socket.gethostname())]
    for lock in stale:
        lock.unlink(missing_ok=True)
        lock.with_name(f"{lock.name}.attrs").unlink(missing_ok=True)
    return stale


def engine_address(words: Sequence[str]) -> tuple[str, int] | None:
    """The engine that a process was started for, from its command line; None when it is no part of Pulumi.

    Args:
        words: the command line of a language host or of a provider of Python resources.
    """
    parts = [Path(word).name for word in words]
    if not words or not ({"pulumi-language-python", "pulumi-resource-pulumi-python", "pulumi.dynamic"} & set(parts)):
        return None
    host, _, port = words[-1].rpartition(":")
    return (host, int(port)) if host and port.isdigit() else None


def end_orphans() -> list[int]:
    """Ends the language hosts and providers whose engine is gone, which would wait for it for ever.

    Returns:
        Their process numbers.
    """
    ended: list[int] = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        except OSError:
            continue  # no process, or gone by now
        address = engine_address(words)
        found = process.look(int(entry.name)) if address else None
        if address and found and not _listens(address):
            process.kill(found)
            ended.append(found.pid)
    return ended


def _listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True  # a busy machine is no proof that the engine is gone
    return True


def pending_creations(state: Mapping[str, Any]) -> Iterator[str]:
    """The URNs of the creations that a checkpoint holds as begun and not ended."""
    latest = state.get("checkpoint", {}).get("latest") or {}
    for operation in latest.get("pending_operations") or []:
        if operation.get("type") == "creating":
            yield operation["resource"]["urn"]


def may_be_forgotten(urns: list[str]) -> bool:
    """Whether all of them are the project's own resources, which a new creation finds and replaces."""
    return all(urn.split("::")[2].rsplit("$", 1)[-1].startswith(_OWN_TYPES) for urn in urns)


def repair(backend_url: str, stack: str) -> None:
    """Puts right what a killed run left of a stack.

    Raises:
        FleetError: the engine could not write the state.
    """
    if orphans := end_orphans():
        print(f"ended {len(orphans)} processes that a killed pulumi left", file=sys.stderr)
    backend = backend_dir(backend_url)
    if backend is None:
        return
    for lock in drop_stale_locks(backend, stack):
        print(f"removed a lock that a killed pulumi left: {lock.name}", file=sys.stderr)
    for file in backend.glob(f"stacks/*/{stack}.json"):
        urns = list(pending_creations(json.loads(file.read_text(encoding="utf-8"))))
        if urns and may_be_forgotten(urns):
            _clear(stack, len(urns))


def _clear(stack: str, count: int) -> None:
    print(f"a killed pulumi left {count} creations open: looking at what there is", file=sys.stderr)
    words = ["pulumi", "refresh", "--stack", stack, "--clear-pending-creates", "--yes", "--skip-preview"]
    pulumi([*words, "--non-interactive"])


def pulumi(words: list[str], text_in: str | None = None) -> str:
    """Runs ``pulumi`` and returns what it printed.

    Raises:
        FleetError: there is none, or it failed.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, input=text_in)
    except FileNotFoundError:
        raise FleetError("there is no 'pulumi' on PATH", "run 'make setup' and '. ./activate'") from None
    if done.returncode != 0:
        raise FleetError(
            f"'{' '.join(words)}' failed: {(done.stderr or done.stdout).strip()[-500:]}",
            "run it by hand",
            code="work-failed",
        )
    return done.stdout


def main() -> int:
    """The command line; the exit code is 0, or that of the error."""
    parser = argparse.ArgumentParser(prog="python -m infra.repair", description=__doc__)
    parser.add_argument("stack")
    parser.add_argument("--adopt", metavar="HOST=ID", action="append", default=[], help="a host that is in the cloud")
    parser.add_argument("--gone", metavar="HOST", action="append", default=[], help="a host that is not there")
    chosen = parser.parse_args()
    try:
        repair(os.environ.get("PULUMI_BACKEND_URL", ""), chosen.stack)
        if chosen.adopt or chosen.gone:
            from infra.adopt import settle

            settle(chosen.stack, chosen.adopt, chosen.gone)
    except FleetError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
