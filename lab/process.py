"""The processes of a host: how they are started, found again and ended without ever hitting another's.

A host is found by the folder that its systemd-nspawn names on its command line, not by a pid in a file: a pid
is used again after its process is gone, a folder of the lab's state never is. Signals go through a pidfd that
is opened before the process is looked at once more, so the process that was looked at is the one that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import shell, state
from vllm_fleet.base.errors import FleetError

#: nspawn ends with this code when the host rebooted; the loop starts it again, as a service manager would.
_LOOP = 'while :; do "$@"; [ $? -eq 133 ] || exit; done'
_LOOP_NAME = "vllm-fleet-lab-host"
_CGROUPS = Path("/sys/fs/cgroup")
#: After the first time whatever is left is killed one by one; processes that wait for a busy disk end late.
_FORCE_SECONDS, _END_SECONDS = 10.0, 120.0


@dataclass(frozen=True)
class Process:
    """One process of this machine, for its whole life: a pid that is used again has another start.

    Attributes:
        pid: its number.
        started: when it began, in clock ticks since the machine's boot.
        parent: the number of its parent.
    """

    pid: int
    started: int
    parent: int


def parse_stat(text: str) -> Process:
    """The identity from ``/proc/<pid>/stat``; the name in it may hold blanks and brackets."""
    number, rest = text.split(" ", 1)
    fields = rest[rest.rindex(")") + 2 :].split()
    return Process(pid=int(number), parent=int(fields[1]), started=int(fields[19]))


def look(pid: int) -> Process | None:
    """The process of that number, None where there is none or only its remains wait for a parent."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if text[text.rindex(")") + 2] == "Z" else parse_stat(text)


def find(root: Path) -> list[Process]:
    """The processes that keep the host of that root folder up: the loop and nspawn, parents first."""
    wanted = f"--directory={root}"
    found: list[Process] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if wanted in words and (process := look(int(entry.name))):
            found.append(process)
    # nspawn's outer child keeps the command line for a moment before it becomes the host's init.
    return sorted(found, key=lambda process: process.started)


def host_init(supervisors: Sequence[Process]) -> list[Process]:
    """The first processes inside of the hosts of these supervisors."""
    parents = {process.pid for process in supervisors}
    everyone = (look(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [process for process in everyone if process and process.parent in parents and process.pid not in parents]


def kill(process: Process) -> None:
    """Ends exactly that process; nothing happens when it is gone, whoever has its number now."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(process.pid)
        try:
            now = look(process.pid)
            if now and now.started == process.started:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def end(root: Path, machine: str) -> None:
    """Ends a host at once, with everything that runs in it, and removes what nspawn leaves behind.

    The host's first process is killed, which ends all the others, and nspawn tidies up after itself. Where
    nspawn was killed before, or does not end, whatever is in the host's cgroups is killed one by one.

    Raises:
        FleetError: something is still there after a while.
    """
    began = time.monotonic()
    while True:
        supervisors, inside = find(root), members(machine)
        if not supervisors and not inside:
            break
        loops = [process for process in supervisors if _is_loop(process)]
        nspawns = [process for process in supervisors if process not in loops]
        waited = time.monotonic() - began
        first = () if nspawns and waited < _FORCE_SECONDS else (*nspawns, *inside)
        for process in (*loops, *host_init(nspawns), *first):
            kill(process)
        if waited > _END_SECONDS:
            pids = ", ".join(str(process.pid) for process in (*supervisors, *inside))
            raise shell.failed(f"the processes {pids} do not end", "see what they wait for", host=machine)
        time.sleep(0.05)
    _remove_cgroups(machine)
    _remove_interface(machine)
    for kind in ("propagate", "unix-export"):
        state.remove_tree(Path("/run/systemd/nspawn") / kind / machine)


def start(root: Path, machine: str, arguments: Sequence[str], log: Path) -> None:
    """Starts a host's nspawn so that it outlives whoever asked for it.

    Where systemd runs the machine, it is a transient service with cgroups delegated to it; else it gets a
    session and cgroups of its own, as two hosts in one cgroup would see each other's services.

    Args:
        root: the host's root folder.
        machine: a name that no other host of this machine has.
        arguments: further arguments of systemd-nspawn.
        log: where the host's console goes.
    """
    # /tmp on the disk, as on a server: nspawn's small tmpfs does not hold what pip unpacks.
    own = {"SYSTEMD_NSPAWN_TMPFS_TMP": "0"}
    nspawn = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--directory={root}", *arguments]
    loop = ["/bin/sh", "-c", _LOOP, _LOOP_NAME, *nspawn]
    if Path("/run/systemd/system").is_dir():
        properties = ("Delegate=yes", "KillMode=mixed", "Slice=machine.slice", "TasksMax=16384")
        shell.run(
            *("systemd-run", "--quiet", "--collect", f"--unit={_LOOP_NAME}-{machine}"),
            *(f"--property={item}" for item in (*properties, f"StandardOutput=append:{log}")),
            *(f"--setenv={key}={value}" for key, value in own.items()),
            *loop,
        )
        return
    # The shell enters its cgroups itself, before anything of the host runs.
    enter = f'for group in {" ".join(_make_cgroups(machine))}; do echo $$ > "$group/cgroup.procs"; done; exec "$@"'
    with log.open("ab") as stream:
        subprocess.Popen(
            ["/bin/sh", "-c", enter, "-", *loop],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env={**shell.environment(), **own},
            cwd="/",
            start_new_session=True,
        )


def _is_loop(process: Process) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return _LOOP_NAME.encode() in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
    return False


def cgroup_roots(base: Path = _CGROUPS) -> list[Path]:
    """The cgroup hierarchies in which systemd keeps its units: one on v2, two on a v1 hybrid."""
    if (base / "cgroup.controllers").is_file():
        return [base]
    return [root for root in (base / "systemd", base / "unified") if (root / "cgroup.procs").is_file()]


def groups_of(machine: str) -> list[Path]:
    """Where the cgroups of a host are, whoever made them."""
    own, service = f"{_LOOP_NAME}/{machine}", f"machine.slice/{_LOOP_NAME}-{machine}.service"
    return [root / path for root in cgroup_roots() for path in (own, service)]


def members(machine: str) -> list[Process]:
    """Everything that runs in the cgroups of a host."""
    pids: set[int] = set()
    for group in groups_of(machine):
        for file in group.glob("**/cgroup.procs"):
            # A cgroup may go while it is looked at; on a v2 machine a threaded one has no list.
            with contextlib.suppress(OSError):
                pids.update(int(pid) for pid in file.read_text(encoding="ascii").split())
    return [process for process in map(look, sorted(pids)) if process]


def _make_cgroups(machine: str) -> list[str]:
    groups = [root / _LOOP_NAME / machine for root in cgroup_roots()]
    for group in groups:
        group.mkdir(parents=True, exist_ok=True)
    return [str(group) for group in groups]


def _remove_cgroups(machine: str) -> None:
    """Removes the host's cgroups, and their parent after the last host; the kernel needs a moment for each."""
    deadline = time.monotonic() + 2
    for group in (root / _LOOP_NAME / machine for root in cgroup_roots()):
        for folder in sorted(group.glob("**/"), reverse=True):
            while folder.exists():
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    break
                if time.monotonic() > deadline:
                    raise shell.failed(f"{folder} cannot be removed", "see what is in it", host=machine)
                time.sleep(0.02)
        with contextlib.suppress(OSError):  # the cgroups of other hosts may be in it
            group.parent.rmdir()


def remove_container_cgroups(containers: Iterable[str]) -> None:
    """Removes the groups of containers that ended with their host; with cgroup v1 they are outside of the host's own.

    Args:
        containers: their ids.
    """
    groups = [group for identity in containers for group in _CGROUPS.glob(f"*/docker/{identity}")]
    for group in (*groups, *_CGROUPS.glob("*/docker")):
        with contextlib.suppress(OSError):  # those of other hosts may be in it
            group.rmdir()


def _remove_interface(machine: str) -> None:
    """Removes the host's end of the network on this machine, where the kernel has not done so yet."""
    for link in json.loads(shell.run("ip", "-j", "link", "show", "type", "veth") or "[]"):
        if f"vb-{machine}" in (link["ifname"], *link.get("altnames", ())):
            # It may go by itself at this very moment, with the host's network namespace.
            with contextlib.suppress(FleetError):
                shell.run("ip", "link", "delete", link["ifname"])
