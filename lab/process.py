"""Starts, finds and ends the processes of a host, and never those of another one.

A host is found by the root folder on the command line of its systemd-nspawn, not by a process number in a file: the
kernel uses numbers again, and the lab never uses a folder again.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from lab import shell, state
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.processes import Process, command_line, find_process, kill_process, process_ids

#: nspawn ends with this code when the host reboots; the loop starts it again, as a service manager would.
_LOOP = 'while :; do "$@"; [ $? -eq 133 ] || exit; done'
_LOOP_NAME = "vllm-fleet-lab-host"
_CGROUPS = Path("/sys/fs/cgroup")
#: After the first period the rest is killed one by one; processes that wait for a busy disk end late.
_FORCE_SECONDS, _END_SECONDS = 10.0, 120.0


def find(root: Path) -> list[Process]:
    """The processes that keep the host of that root folder up: the loop and nspawn, parents first."""
    wanted = f"--directory={root}"
    supervisors = [find_process(pid) for pid in process_ids() if wanted in command_line(pid)]
    # nspawn's outer child keeps the command line for a moment before it becomes the host's init.
    return sorted(filter(None, supervisors), key=lambda process: process.started)


def host_init(supervisors: Sequence[Process]) -> list[Process]:
    """The init processes of the hosts of these supervisors."""
    parents = {process.pid for process in supervisors}
    everyone = map(find_process, process_ids())
    return [process for process in everyone if process and process.parent in parents and process.pid not in parents]


def end(root: Path, machine: str) -> None:
    """Kills a host with everything in it, and removes what nspawn leaves behind.

    Killing the host's init ends all of its processes, and nspawn cleans up. Where nspawn was killed before, or does
    not end, the processes in the host's cgroups are killed one by one.

    Raises:
        FleetError: processes are left after two minutes.
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
            kill_process(process)
        if waited > _END_SECONDS:
            pids = ", ".join(str(process.pid) for process in (*supervisors, *inside))
            raise shell.failed(f"the processes {pids} do not end", "check what they wait for", host=machine)
        time.sleep(0.05)
    _remove_cgroups(machine)
    _remove_interface(machine)
    for kind in ("propagate", "unix-export"):
        state.remove_tree(Path("/run/systemd/nspawn") / kind / machine)


def start(root: Path, machine: str, arguments: Sequence[str], log: Path) -> None:
    """Starts a host's nspawn so that it outlives this process.

    On a machine with systemd it is a transient service with delegated cgroups. Elsewhere it gets its own session and
    cgroups, because two hosts in one cgroup would see each other's services.

    Args:
        root: the host's root folder.
        machine: a name that is unique on this machine.
        arguments: further arguments of systemd-nspawn.
        log: the file for the host's console.
    """
    # /tmp on the disk, as on a server: nspawn's tmpfs is too small for pip.
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
    return _LOOP_NAME in command_line(process.pid)


def cgroup_roots(base: Path = _CGROUPS) -> list[Path]:
    """The cgroup hierarchies in which systemd keeps its units: one on v2, two on a v1 hybrid."""
    if (base / "cgroup.controllers").is_file():
        return [base]
    return [root for root in (base / "systemd", base / "unified") if (root / "cgroup.procs").is_file()]


def groups_of(machine: str) -> list[Path]:
    """The cgroups of a host, from either way of starting it."""
    own, service = f"{_LOOP_NAME}/{machine}", f"machine.slice/{_LOOP_NAME}-{machine}.service"
    return [root / path for root in cgroup_roots() for path in (own, service)]


def members(machine: str) -> list[Process]:
    """The processes in the cgroups of a host."""
    pids: set[int] = set()
    for group in groups_of(machine):
        for file in group.glob("**/cgroup.procs"):
            # A cgroup may vanish meanwhile; on a v2 machine a threaded one has no list.
            with contextlib.suppress(OSError):
                pids.update(int(pid) for pid in file.read_text(encoding="ascii").split())
    return [process for process in map(find_process, sorted(pids)) if process]


def _make_cgroups(machine: str) -> list[str]:
    groups = [root / _LOOP_NAME / machine for root in cgroup_roots()]
    for group in groups:
        group.mkdir(parents=True, exist_ok=True)
    return [str(group) for group in groups]


def _remove_cgroups(machine: str) -> None:
    """Removes the host's cgroups, and their parent after the last host; the kernel may need a moment for each."""
    deadline = time.monotonic() + 2
    for group in (root / _LOOP_NAME / machine for root in cgroup_roots()):
        for folder in sorted(group.glob("**/"), reverse=True):
            while folder.exists():
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    break
                if time.monotonic() > deadline:
                    raise shell.failed(f"{folder} cannot be removed", "check what it contains", host=machine)
                time.sleep(0.02)
        with contextlib.suppress(OSError):  # the cgroups of other hosts may be in it
            group.parent.rmdir()


def remove_container_cgroups(containers: Iterable[str]) -> None:
    """Removes the cgroups of containers that ended with their host; with cgroup v1 they are outside of the host's.

    Args:
        containers: their ids.
    """
    groups = [group for identity in containers for group in _CGROUPS.glob(f"*/docker/{identity}")]
    for group in (*groups, *_CGROUPS.glob("*/docker")):
        with contextlib.suppress(OSError):  # those of other hosts may be in it
            group.rmdir()


def _remove_interface(machine: str) -> None:
    """Removes the host's network interface on this machine, unless the kernel has done so already."""
    for link in json.loads(shell.run("ip", "-j", "link", "show", "type", "veth") or "[]"):
        if f"vb-{machine}" in (link["ifname"], *link.get("altnames", ())):
            # The kernel may remove it at the same moment, with the host's network namespace.
            with contextlib.suppress(FleetError):
                shell.run("ip", "link", "delete", link["ifname"])
