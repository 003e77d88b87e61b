"""Runs a playbook on the worker of a region: ansible-runner transmits, the worker works, ansible-runner processes."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.foreign_text import clean_bytes
from vllm_fleet.edge import openssh, ssh
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.on_host import run_worker

#: A line of the answer is an event of Ansible; one that is longer is no event of this project.
_LINE_BYTES = 64 << 20
_TAIL_BYTES = 4096
#: The file ``env/settings`` of the private data directory.
SETTINGS = {"pexpect_timeout": 1, "suppress_output_file": True}
#: How often a worker hears from the controller.
_BEAT_SECONDS = run_worker.SILENCE_SECONDS / 8
_KEEPALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")


def worker_command() -> str:
    """The command that runs :mod:`vllm_fleet.on_host.run_worker`, as the user who logs in."""
    return f"/usr/bin/python3 -IS -c {ssh.pack_program('run_worker')}"


class _Stream(io.BytesIO):
    """What ansible-runner transmits. It asks a stream for its name."""

    name = "the stream of a worker"


@dataclass(frozen=True)
class Transmitted:
    """What a worker is sent.

    Attributes:
        folder: the private data directory of ansible-runner, with ``project/``.
        book: the playbook, in ``project/``.
        inventory: the inventory, below ``folder``.
        arguments: more arguments of ``ansible-playbook``.
        private_key: a private key for the hosts, which the worker keeps in the memory of an agent; None: its own.
        become_password: the password for sudo on the hosts.
    """

    folder: Path
    book: str
    inventory: Path
    arguments: Sequence[str]
    private_key: str | None = field(default=None, repr=False)
    become_password: str | None = field(default=None, repr=False)

    def stream(self) -> bytes:
        """The stream, as ``ansible-runner transmit`` makes it. Keys and passwords are in no file of it."""
        from ansible_runner import interface  # not before: it takes longer to import than most commands run

        stream = _Stream()
        words = [*self.arguments, *(["--ask-become-pass"] if self.become_password else [])]
        interface.run(
            streamer="transmit",
            _output=stream,
            private_data_dir=str(self.folder),
            playbook=self.book,
            inventory=str(self.inventory),
            cmdline=shlex.join(words) or None,
            passwords={r"BECOME password.*:\s*?$": self.become_password} if self.become_password else None,
            ssh_key=self.private_key,
            envvars={"ANSIBLE_HOST_KEY_CHECKING": "True"},
            suppress_env_files=True,
            # Without it ansible-runner takes Ctrl-C for itself.
            cancel_callback=lambda: False,
        )
        return stream.getvalue()


@dataclass
class _Answer:
    """The lines that a worker sends, as ansible-runner reads them, without the archive at their end.

    The archive has copies of what the events say, and unpacking it would let a worker write files here.
    """

    opened: BinaryIO

    def readline(self) -> bytes:
        """The next line; the end of the stream in place of an archive."""
        line = self.opened.readline(_LINE_BYTES)
        if line.startswith(b'{"zipfile"') or (line and not line.endswith(b"\n")):
            return b'{"eof": true}\n'
        return line


@dataclass
class WorkerPlaybook:
    """A playbook that runs on a worker.

    Attributes:
        target: the worker.
        python: the interpreter there that has the packages of the project.
        place: the folder of the run there.
        environment: further variables of the environment of the run.
        on_event: called in a thread for each event of Ansible.
    """

    target: Target
    python: str
    place: str
    environment: Mapping[str, str]
    on_event: Callable[[Mapping[str, Any]], None]
    _stack: ExitStack = field(default_factory=ExitStack)
    _process: subprocess.Popen[bytes] | None = None
    _threads: list[threading.Thread] = field(default_factory=list)
    _words: SimpleQueue[bytes] = field(default_factory=SimpleQueue)
    _statuses: list[str] = field(default_factory=list)
    _why: str = ""
    _err: bytes = b""

    def start(self, stream: bytes) -> None:
        """Starts it.

        Args:
            stream: what is sent, of :meth:`Transmitted.stream`.
        """
        scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vllm-fleet-worker-")))
        known = scratch / "known_hosts"
        known.write_text(openssh.known_hosts_text(self.target), encoding="utf-8")
        words = openssh.command_words(self.target, known, worker_command(), _KEEPALIVE)
        pipe = subprocess.PIPE
        # A session of its own: Ctrl-C at the terminal does not reach ssh.
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        asked = {
            "command": "run",
            "python": self.python,
            "folder": self.place,
            "bytes": len(stream),
            "environment": self.environment,
        }
        self._words.put(json.dumps(asked).encode() + b"\n" + stream)
        work = (self._write, self._read, self._read_errors)
        self._threads = [threading.Thread(target=each, daemon=True) for each in work]
        for thread in self._threads:
            thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it works still."""
        return any(thread.is_alive() for thread in self._threads)

    @property
    def returncode(self) -> int:
        """0 if the playbook has ended well."""
        return 0 if self._statuses[-1:] == ["successful"] else 1

    def error(self) -> FleetError | None:
        """Why the worker gave no whole answer; None: it did."""
        if self._statuses[-1:] in (["successful"], ["failed"]):
            return None
        code = self._process.returncode if self._process else None
        if code == run_worker.BUSY:
            return FleetError(
                "another run of this fleet works in the region",
                "wait until it has ended, or end it; its hosts go back by themselves",
                host=self.target.name,
                code=ErrorCode.REFUSED,
            )
        if code == openssh.CONNECTION_FAILED:
            why = openssh.explain_failure(self.target, self._err.decode(errors="replace"))
        else:
            why = clean_bytes(self._err) or self._why
        return FleetError(
            f"the worker has not ended its run: {why or 'the connection was closed'}",
            "hosts that were at work go back by themselves; run the command again to go on",
            host=self.target.name,
            code=ErrorCode.WORK_FAILED,
        )

    def ask_to_stop(self) -> None:
        """Asks it to begin no further batch."""
        self._words.put(b"stop\n")

    def kill(self) -> None:
        """Ends it at once: with the connection everything ends that it has started on the worker."""
        if self._process and self._process.poll() is None:
            self._process.kill()

    def end(self) -> None:
        """Kills it if it works still, and waits for its end."""
        if self.is_running:
            self.kill()
        for thread in self._threads:
            thread.join()
        if self._process:
            for opened in (self._process.stdin, self._process.stdout, self._process.stderr):
                if opened:
                    with suppress(OSError):
                        opened.close()
            self._process.wait()
        self._stack.close()

    def _write(self) -> None:
        """Sends what there is to say, and a sign of life, until the end."""
        while word := self._next_word():
            if self._process and self._process.stdin:
                # A worker that has ended reads no more: its exit status says why.
                with suppress(OSError, ValueError):
                    self._process.stdin.write(word)
                    self._process.stdin.flush()

    def _next_word(self) -> bytes:
        try:
            return self._words.get(timeout=_BEAT_SECONDS)
        except Empty:
            return b"alive\n"

    def _read(self) -> None:
        from ansible_runner import interface

        def hear(event: Mapping[str, Any]) -> bool:
            self.on_event(event)
            return False

        def note(status: Mapping[str, Any], runner_config: object) -> None:
            del runner_config
            self._statuses.append(str(status["status"]))
            self._why = str(status.get("job_explanation") or self._why)

        process = self._process
        if process is None or process.stdout is None:
            return
        with tempfile.TemporaryDirectory(prefix="vllm-fleet-") as folder:
            interface.run(
                streamer="process",
                _input=_Answer(process.stdout),  # type: ignore[arg-type]
                private_data_dir=folder,
                event_handler=hear,
                status_handler=note,
                quiet=True,
            )
        # What follows is of no use, and the worker waits until it is read.
        while process.stdout.read(1 << 16):
            continue
        process.wait()
        self._words.put(b"")

    def _read_errors(self) -> None:
        process = self._process
        while process and process.stderr and (block := process.stderr.read1(1 << 12)):  # type: ignore[attr-defined]
            self._err = (self._err + block)[-_TAIL_BYTES:]
