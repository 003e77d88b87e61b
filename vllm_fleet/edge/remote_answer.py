"""Reads the answer of a remote program within limits: between two marks, so that a shell may print what it likes.

What a host prints is a stranger's: the reader keeps one mebibyte of it at most, and ends a program that prints more.
The bytes of a file that it was asked for go to the disk, up to a limit of their own.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from vllm_fleet.base.foreign_text import clean_bytes
from vllm_fleet.edge.connection import CommandFailedError, NoAnswerError
from vllm_fleet.edge.ssh_target import Target

#: Of the standard output, with what the shell prints before and after the answer; the same of the standard error.
LIMIT_BYTES = 1 << 20
_BEGIN = "vllm-fleet-answer-begins"
_END = "vllm-fleet-answer-ends"
_READY = "vllm-fleet-program-starts"
_PROMPT = "[vllm-fleet] password for sudo: "
_TAIL_BYTES = 4096
_BLOCK_BYTES = 1 << 15
#: The exit status of the program ``ssh`` for an error of its own.
_SSH_FAILED = 255
#: A line of its own: a shell that prints its commands prints the mark within one.
_FROM_BEGIN = re.compile(rf"(?:^|\n){_BEGIN}\r?\n".encode())
#: Before the bytes of a file, with their number.
_FROM_BYTES = re.compile(rb"(?m)^vllm-fleet-bytes ([0-9]{1,12})\n")
#: sudo has no other sign for it.
_NEEDS_PASSWORD = "password is required"  # noqa: S105 - a message, no password


class Streams(Protocol):
    """The three streams of a remote program, as asyncio and asyncssh have them."""

    @property
    def stdin(self) -> Any:
        """Its standard input."""

    @property
    def stdout(self) -> Any:
        """Its standard output."""

    @property
    def stderr(self) -> Any:
        """Its standard error."""


@dataclass
class Output:
    """What a program has printed: its standard output, and the end of its standard error."""

    out: bytearray = field(default_factory=bytearray)
    err: bytes = b""


@dataclass(frozen=True)
class Files:
    """Files that travel with a question and its answer.

    Attributes:
        sent: its bytes follow the question.
        taken: gets the bytes that the program prints behind the line ``vllm-fleet-bytes NUMBER``.
        limit_bytes: how many it may be.
    """

    sent: Path | None = None
    taken: Path | None = None
    limit_bytes: int = 0


NO_FILES = Files()


def mark_answer(command: str) -> str:
    """A command between the marks of its answer; the last one only if it succeeds. Every login shell reads this."""
    return f"echo {_BEGIN}; {command} && echo {_END}"


def sudo_command(command: str, *, password: bool) -> str:
    """A command as root.

    Args:
        command: its words, quoted for a shell.
        password: whether sudo may ask for one, which :func:`exchange` sends; without it a question is a failure.
    """
    if not password:
        return f"sudo -n {command}"
    # The mark shows that no question is left: sudo asks for no password where it knows it, or needs none.
    start = shlex.quote(f'echo {_READY}; exec "$@"')
    return f"sudo -S -p {shlex.quote(_PROMPT)} /bin/sh -c {start} sh {command}"


async def exchange(streams: Streams, target: Target, text: bytes, files: Files = NO_FILES) -> Output:
    """Sends the standard input of a program and reads its output to the end.

    Args:
        streams: the program.
        target: the host, with the password for sudo if it may ask for one.
        text: the standard input.
        files: what follows it, and where the bytes of an answer go.

    Raises:
        NoAnswerError: it prints too much, or sudo refuses the password.
        OSError: a file cannot be read or written here.
    """
    with ExitStack() as stack:
        sent = stack.enter_context(files.sent.open("rb")) if files.sent else None
        taking = _Taking(stack.enter_context(files.taken.open("wb")), files.limit_bytes) if files.taken else None
        return await _Exchange(streams, target, text, sent, taking).run()


class _TooMuchError(Exception):
    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self.limit_bytes = limit_bytes


class _Taking:
    """Moves the bytes of a file out of an output."""

    def __init__(self, file: BinaryIO, limit_bytes: int) -> None:
        self._file, self._limit = file, limit_bytes
        self._at: int | None = None
        self._left = 0

    def move(self, kept: bytearray) -> None:
        if self._at is None:
            found = _FROM_BYTES.search(kept)
            if found is None:
                return
            self._at, self._left = found.start(), int(found[1])
            if self._left > self._limit:
                raise _TooMuchError(self._limit)
            del kept[found.start() : found.end()]
        end = min(self._at + self._left, len(kept))
        self._file.write(kept[self._at : end])
        self._left -= end - self._at
        del kept[self._at : end]


class _Exchange:
    def __init__(
        self, streams: Streams, target: Target, text: bytes, sent: BinaryIO | None, taking: _Taking | None
    ) -> None:
        self._streams, self._target, self._text = streams, target, text
        self._sent, self._taking = sent, taking
        self._output = Output()
        self._password = target.become_password if target.user != "root" else None
        self._started = asyncio.Event()
        self._asked = False

    async def run(self) -> Output:
        writing = asyncio.ensure_future(self._write())
        reading = asyncio.gather(self._read_output(), self._read_errors())
        try:
            await reading
        finally:
            for task in (reading, writing):
                task.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)
        return self._output

    async def _write(self) -> None:
        if self._password is not None:
            await self._started.wait()
        # A program that has ended reads no more: its exit status says why.
        with suppress(OSError):
            self._streams.stdin.write(self._text)
            await self._streams.stdin.drain()
            while self._sent and (block := self._sent.read(_BLOCK_BYTES)):
                self._streams.stdin.write(block)
                await self._streams.stdin.drain()
            self._streams.stdin.write_eof()

    async def _read_output(self) -> None:
        kept = self._output.out
        while block := await self._streams.stdout.read(_BLOCK_BYTES):
            kept += block
            try:
                if self._taking:
                    self._taking.move(kept)
            except _TooMuchError as fault:
                raise self._too_much("a file", fault.limit_bytes) from None
            if len(kept) > LIMIT_BYTES:
                raise self._too_much("output")
            if not self._started.is_set() and _READY.encode() in kept:
                self._started.set()

    async def _read_errors(self) -> None:
        received = 0
        while block := await self._streams.stderr.read(_BLOCK_BYTES):
            received += len(block)
            if received > LIMIT_BYTES:
                raise self._too_much("error output")
            self._output.err = (self._output.err + block)[-_TAIL_BYTES:]
            if self._password is not None and not self._started.is_set() and _PROMPT.encode() in self._output.err:
                self._send_password(self._password)

    def _send_password(self, password: str) -> None:
        if self._asked:
            raise NoAnswerError(f"sudo on {self._target.address} refuses the password of {self._target.user}")
        self._asked = True
        self._output.err = self._output.err.replace(_PROMPT.encode(), b"")
        with suppress(OSError):
            self._streams.stdin.write(f"{password}\n".encode())

    def _too_much(self, stream: str, limit_bytes: int = LIMIT_BYTES) -> NoAnswerError:
        return NoAnswerError(f"{self._target.address} sends more than {limit_bytes >> 20} MiB of {stream}")


def find_answer(target: Target, exit_status: int | None, output: Output) -> str:
    """The text between the marks.

    Args:
        target: the host, for the message.
        exit_status: how the command ended.
        output: what it has printed.

    Raises:
        CommandFailedError: the command failed.
        NoAnswerError: the shell did not run the command, the connection has ended, or the answer is not UTF-8.
    """
    out = bytes(output.out)
    begins = [match.end() for match in _FROM_BEGIN.finditer(out)]
    last = clean_bytes(output.err)
    if not begins:
        if last and exit_status == _SSH_FAILED:
            raise NoAnswerError(f"cannot be reached at {target.address} port {target.port}: {last}")
        said = clean_bytes(bytes(output.out[-_TAIL_BYTES:])) or last
        printed = f"it prints: {said}" if said else "it prints nothing"
        raise NoAnswerError(
            f"the shell of {target.user} on {target.address} does not run the probe (exit status {exit_status}): "
            f"{printed}"
        )
    end = out.find(_END.encode(), begins[-1])
    if end < 0:
        if _NEEDS_PASSWORD in last and target.become_password is None:
            last += " (give it with --ask-become-pass)"
        # Without an exit status, and with that of ssh, the connection has ended before the command.
        kind = NoAnswerError if exit_status in (None, _SSH_FAILED) else CommandFailedError
        raise kind(f"the probe failed on {target.address}: {last or f'exit status {exit_status}, no whole answer'}")
    answer = out[begins[-1] : end].rpartition(f"{_READY}\n".encode())[2]
    try:
        return answer.decode()
    except UnicodeDecodeError:
        raise NoAnswerError(f"{target.address} gave an answer that cannot be read: it is not UTF-8") from None
