"""One screen for long work: what runs, how far it is, and for how long. Everything else goes to a log file.

On a terminal the screen is renewed in place; elsewhere a phase that takes longer than a moment prints a line when it
starts, now and then, and when it ends.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.paths import cache_dir, display, root

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

_KEPT_LOGS = 10
_MOMENT_SECONDS = 2.0  # a phase that is over sooner is not worth a line
_LINE_SECONDS = 30.0  # between two lines of a phase, where there is no terminal
_TAIL_LINES = 15  # of the log of a phase that failed
_NOTE_WIDTH = 70
_REFUSED = 2  # the exit code of this project's programs for bad input and refusals
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Phase:
    """One part of the work.

    Attributes:
        name: what it does.
        typical_seconds: how long it usually takes on two idle cores, when there is something to do.
        log: the file with everything that its programs print.
        note: the newest detail.
        next_line_seconds: when its next line is due, where there is no terminal.
    """

    name: str
    typical_seconds: float
    log: Path
    note: str = ""
    failed: bool = False
    next_line_seconds: float = _MOMENT_SECONDS
    _began: float | None = None
    _ended: float | None = None
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it has run."""
        if self._began is None:
            return 0.0
        return (time.monotonic() if self._ended is None else self._ended) - self._began

    @property
    def state(self) -> str:
        """``waiting``, ``running``, ``done`` or ``failed``."""
        if self._began is None:
            return "waiting"
        if self._ended is None:
            return "running"
        return "failed" if self.failed else "done"

    def __enter__(self) -> Phase:
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = time.monotonic()
        self.failed = kind is not None
        self.stop()

    def run(self, *words: str, environment: Mapping[str, str] | None = None) -> None:
        """Runs a program in the project's root; its output goes to the log, its last line is the note.

        Raises:
            FleetError: it failed. The message ends with the last lines of the log.
        """
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(words)}\n")
            log.flush()
            with subprocess.Popen(
                words,
                cwd=root(),
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as process:
                self._processes.append(process)
                for line in process.stdout or ():
                    log.write(line)
                    log.flush()
                    self.note = describe_line(line) or self.note
        if process.returncode:
            tail = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
            raise FleetError(
                "\n  ".join([f"'{' '.join(words)}' ended with exit code {process.returncode}:", *tail, ""]).rstrip(),
                f"the whole output is in {display(self.log)}; run the same command again to continue",
                code=ErrorCode.REFUSED if process.returncode == _REFUSED else ErrorCode.WORK_FAILED,
            )

    def stop(self) -> None:
        """Ends the programs that still run."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()


def describe_line(line: str) -> str:
    """What a line of a program's output tells about its progress; empty when it tells nothing."""
    plain = _ESCAPES.sub("", line.rsplit("\r", 1)[-1]).strip()
    if task := re.match(r"(?:PLAY|TASK) \[(.*)\] \**$", plain):
        return task[1]
    if not plain or set(plain) <= set("*-=_ ") or re.match(r"(ok|skipping|included|changed): ", plain):
        return ""
    return plain.removeprefix("lab: ").removeprefix("setup: ")


def exit_code_of(work: Callable[[], None]) -> int:
    """Does the work of a command and prints its errors.

    Returns:
        0, the exit code of the error, or 130 where the user interrupted it.
    """
    try:
        work()
    except FleetError as fault:
        for error in (fault, *fault.others):
            print(f"error: {error}", file=sys.stderr)
        return fault.exit_code
    except KeyboardInterrupt:
        print("error: interrupted (run the same command again to continue)", file=sys.stderr)
        return 130
    return 0


class Board:
    """The phases of one job, on one screen."""

    def __init__(self, job: str) -> None:
        """Makes the folder of the logs and removes the oldest ones.

        Args:
            job: the name of the job, for the folder of its logs.
        """
        logs = cache_dir() / "logs"
        self.folder = logs / f"{job}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self.folder.mkdir(mode=0o700, parents=True)
        for old in sorted(logs.glob(f"{job}-*"))[:-_KEPT_LOGS]:
            shutil.rmtree(old, ignore_errors=True)
        self.phases: list[Phase] = []
        self._terminal = sys.stderr.isatty()
        self._live: Live | None = None
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._print_lines, daemon=True)

    def __enter__(self) -> Board:
        if self._terminal:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                get_renderable=self._table, console=Console(stderr=True), refresh_per_second=2, redirect_stdout=False
            )
            self._live.start()
        else:
            self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for phase in self.phases:
            phase.stop()
        self._over.set()
        if self._live:
            self._live.stop()

    def add(self, name: str, typical_seconds: float) -> Phase:
        """A further phase, which starts when it is entered."""
        file = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        phase = Phase(name, typical_seconds, self.folder / f"{file}.log")
        self.phases.append(phase)
        return phase

    def do(self, phase: Phase, work: Callable[[Phase], None]) -> None:
        """Does the work of a phase.

        Raises:
            FleetError: it failed.
        """
        try:
            with phase:
                work(phase)
        finally:
            if phase.failed or phase.seconds > _MOMENT_SECONDS:
                self._say(f"{phase.name}: {phase.state} after {phase.seconds:.0f} s")

    def do_together(self, phases: Sequence[tuple[Phase, Callable[[Phase], None]]]) -> None:
        """Does the work of several phases side by side, each to its end.

        Raises:
            FleetError: some failed; the first one, with the others beside it.
        """
        with ThreadPoolExecutor(max_workers=len(phases)) as pool:
            jobs = [pool.submit(self.do, phase, work) for phase, work in phases]
            try:
                faults = [fault for job in jobs if (fault := job.exception())]
            except BaseException:
                for phase, _ in phases:
                    phase.stop()
                raise
        for fault in faults:
            if not isinstance(fault, FleetError):
                raise fault
        if faults:
            first, *rest = [fault for fault in faults if isinstance(fault, FleetError)]
            raise FleetError(first.message, first.hint, code=first.code, others=rest)

    def _say(self, line: str) -> None:
        if not self._terminal:
            print(line, file=sys.stderr, flush=True)

    def _print_lines(self) -> None:
        while not self._over.wait(0.5):
            for phase in self.phases:
                if phase.state == "running" and phase.seconds >= phase.next_line_seconds:
                    phase.next_line_seconds += _LINE_SECONDS
                    self._say(f"{phase.name}: {_clock(phase)} {phase.note[:_NOTE_WIDTH]}".rstrip())

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for phase in self.phases:
            style = {"waiting": "dim", "running": "bold", "done": "green", "failed": "red"}[phase.state]
            note = phase.note[:_NOTE_WIDTH] if phase.state == "running" else ""
            table.add_row(
                Text(phase.name, style), Text(phase.state, style), Text(_clock(phase), style), Text(note, "dim")
            )
        table.add_row(Text(f"logs: {display(self.folder)}", "dim"), "", "", "")
        return table


def _clock(phase: Phase) -> str:
    """How long a phase has run, and while it runs, of how long."""
    if phase.state == "waiting":
        return ""
    past = f"{int(phase.seconds) // 60}:{int(phase.seconds) % 60:02d}"
    typical = phase.typical_seconds
    if phase.state != "running" or typical < 1:
        return past
    return f"{past} of about {int(typical) // 60}:{int(typical) % 60:02d}"
