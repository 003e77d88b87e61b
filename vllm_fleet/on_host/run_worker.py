"""Runs ``ansible-runner worker`` on the worker of a region, and leaves nothing of the run there.

Standard library only. Reads a line of JSON:

- ``{"command": "look", "python", "packages"}`` prints ``{"folder", "versions"}``: the folder of runs, which is in
  memory, and the version of each package, null where it is missing.
- ``{"command": "run", "python", "folder", "bytes", "environment"}`` is followed by the stream of ``ansible-runner
  transmit``. After it the line ``stop`` creates the file ``stop`` in the folder. The end of the input, which is that of
  the connection too, ends the run at once, and so do two minutes without a line: the network may be gone.

The folder has the files of the stream, so it goes in any case: a second process waits for the end of this one, however
it ends, kills what the run has started, and removes the folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from typing import Any, Dict, Iterator, List

#: Folders in memory: a machine that loses its power has nothing of a run afterwards.
MEMORY = "/dev/shm"  # noqa: S108 - the folder in it belongs to this user alone, which is checked
#: Every process of a run has the folder of the run in this variable.
MARK = "VLLM_FLEET_WORKER_RUN"
#: Exit codes: another run is under way; the worker cannot be used; the controller is gone.
BUSY, UNUSABLE, ALONE = 75, 78, 79
#: After so long without a word the controller is gone.
SILENCE_SECONDS = 120.0
_VERSIONS = """
import importlib.metadata as m, json, sys
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""
#: Variables of the account that would change what runs begin with these.
_STRANGE = ("ANSIBLE_", "PYTHON", "VIRTUAL_ENV", "VLLM_FLEET_")


class UnusableError(Exception):
    """This machine cannot run what was sent."""


def base_folder() -> str:
    """The folder of this user for runs.

    Raises:
        UnusableError: it cannot be made, or it belongs to another user.
    """
    path = os.path.join(MEMORY, "vllm-fleet-%d" % os.getuid())
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as fault:
        raise UnusableError("%s cannot be created: %s" % (path, fault.strerror)) from None
    about = os.lstat(path)
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise UnusableError("%s is not a folder of this user alone: remove it" % path)
    return path


def look(python: str, packages: List[str]) -> Dict[str, Any]:
    """What the controller must know of this machine.

    Args:
        python: the interpreter that has the packages of the project.
        packages: their names.
    """
    if not os.access(python, os.X_OK):
        raise UnusableError("%s is missing" % python)
    done = subprocess.run([python, "-I", "-c", _VERSIONS, *packages], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise UnusableError("%s ends with exit code %d" % (python, done.returncode))
    return {"folder": base_folder(), "versions": json.loads(done.stdout.decode())}


def processes_of(folder: str) -> Iterator[int]:
    """The processes of the run in a folder, but not this one.

    Agents hide their environment, and shared connections of ssh overwrite it; both have the folder in their command.
    """
    mark = ("%s=%s" % (MARK, folder)).encode()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        environment, command = (read_file("/proc/%s/%s" % (name, part)) for part in ("environ", "cmdline"))
        if mark in environment.split(b"\0") or (folder + "/").encode() in command:
            yield int(name)


def read_file(path: str) -> bytes:
    """A file of a process; empty if that has ended, or is another user's."""
    try:
        with open(path, "rb") as opened:
            return opened.read()
    except OSError:
        return b""


def kill(number: int) -> bool:
    """Kills a process; returns whether there was one of this user."""
    try:
        os.kill(number, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def clean(folder: str) -> None:
    """Kills what a run has started, and removes its folder."""
    # A process that is killed may have started one meanwhile.
    while any(list(map(kill, list(processes_of(folder))))):
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def watch(folder: str) -> None:
    """Starts the process that cleans up after this one."""
    reads, writes = os.pipe()
    if os.fork():
        os.close(reads)
        os.set_inheritable(writes, False)
        return
    os.setsid()
    os.close(writes)
    # The connection must end with the first process.
    with open(os.devnull, "r+b") as nothing:
        for number in (0, 1, 2):
            os.dup2(nothing.fileno(), number)
    for name in ("SIGHUP", "SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.read(reads, 1)
    clean(folder)
    os._exit(0)


def lock(folder: str) -> bool:
    """Whether this run has the folder for itself. The process that cleans up has the lock too, until it has ended."""
    handle = os.open(folder + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def run(asked: Dict[str, Any]) -> int:
    """Runs what follows on standard input; returns the exit code."""
    folder, python = asked["folder"], asked["python"]
    if os.path.dirname(folder) != base_folder():
        raise UnusableError("%s is no folder of runs" % folder)
    if not lock(folder):
        sys.stderr.write("another run of this fleet and region is under way on this machine\n")
        return BUSY
    clean(folder)
    os.makedirs(os.path.join(folder, "tmp"), 0o700)
    watch(folder)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_STRANGE)}
    environment["PATH"] = os.path.dirname(python) + ":/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    environment["TMPDIR"] = os.path.join(folder, "tmp")
    environment[MARK] = folder
    environment.update(asked["environment"])
    ear = Ear(folder)
    work = subprocess.Popen(
        [python, "-m", "ansible_runner", "worker", "--private-data-dir", os.path.join(folder, "run")],
        stdin=subprocess.PIPE,
        env=environment,
        cwd=folder,
    )
    ear.feed(work, asked["bytes"])
    threading.Thread(target=ear.obey, daemon=True).start()
    code = work.wait()
    clean(folder)
    return ALONE if ear.alone else abs(code)


class Ear:
    """Hears the controller."""

    def __init__(self, folder: str) -> None:
        """Args: folder: that of the run."""
        self.alone = False
        self._folder = folder
        self._last = time.monotonic()
        threading.Thread(target=self._guard, daemon=True).start()

    def _guard(self) -> None:
        """Ends all when nothing was heard for too long."""
        while time.monotonic() - self._last < SILENCE_SECONDS:
            time.sleep(1)
        self.alone = True
        clean(self._folder)
        os._exit(ALONE)

    def feed(self, work: Any, left: int) -> None:
        """Gives ``ansible-runner worker`` its stream."""
        while left:
            block = sys.stdin.buffer.read1(min(left, 1 << 16))  # type: ignore[union-attr,unused-ignore]
            if not block:
                break
            self._last = time.monotonic()
            left -= len(block)
            try:
                work.stdin.write(block)
            except BrokenPipeError:
                continue  # it has ended, and says why on its output
        try:
            work.stdin.close()
        except BrokenPipeError:
            return

    def obey(self) -> None:
        """Does what the controller asks for while the run is under way."""
        for line in sys.stdin.buffer:
            self._last = time.monotonic()
            if line == b"stop\n":
                with open(os.path.join(self._folder, "stop"), "w"):
                    pass
        clean(self._folder)


def main() -> int:
    """Reads the first line and does what it says."""
    os.umask(0o077)
    asked = json.loads(sys.stdin.buffer.readline().decode())
    try:
        if asked["command"] == "run":
            return run(asked)
        print(json.dumps(look(asked["python"], asked["packages"])))
    except UnusableError as fault:
        sys.stderr.write("%s\n" % fault)
        return UNUSABLE
    return 0


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    # A thread may wait for input still, with which Python would not end.
    os._exit(exit_code)
