"""A rollout while it runs: a live table on a terminal, and lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.cli.output import print_note, print_text
from vllm_fleet.operate.rollout.record import BatchBegun, Event, GateJudged, Left, Outcome
from vllm_fleet.operate.rollout.timeline import HostLine, Timeline, describe_refused, figures_text

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

COLUMNS = ("host", "batch", "phase", "seconds", "tokens/s", "gate")
#: The order of hosts in a table that has no place for all of them: those that a reader must see come first.
_FIRST = {"failed": 0, "returned": 0, "untouched": 0, "waits": 3, "left": 3, "serving": 2}
_STYLES = {"failed": "red", "returned": "red", "untouched": "red", "serving": "green"}


def make_rows(timeline: Timeline, now: float, most: int) -> tuple[list[tuple[str, ...]], str]:
    """The rows of the table, and what is said of the hosts that have no row.

    Args:
        timeline: what the run has done.
        now: the time, in seconds since 1970.
        most: how many rows there may be.

    Returns:
        A row for each host, by batch; with more hosts than rows, those at work and those that were refused come first.
    """
    hosts = list(timeline.hosts.values())
    shown = sorted(hosts, key=lambda host: _FIRST.get(host.state, 1))[:most] if len(hosts) > most else hosts
    shown.sort(key=lambda host: host.batch or len(hosts) + 1)
    names = {host.name for host in shown}
    left = Counter(host.state for host in hosts if host.name not in names)
    more = ", ".join(f"{count} {state}" for state, count in left.most_common())
    return [_row(host, now) for host in shown], f"and {more}" if more else ""


def _row(host: HostLine, now: float) -> tuple[str, ...]:
    span, speed = host.current, host.tokens_per_second
    seconds = span.seconds(now) if span else sum(each.seconds(now) for each in host.spans)
    phase = f"{host.state} {span.instance}" if span and span.instance and not host.outcome else host.state
    return (
        host.name,
        str(host.batch or ""),
        phase,
        f"{seconds:.0f}" if host.spans else "",
        f"{speed:.1f}" if speed is not None else "",
        _gate(host),
    )


def _gate(host: HostLine) -> str:
    """The gate that refused a host, those that are asked now, or the last one that it has passed."""
    if host.outcome and host.outcome.gate:
        return host.outcome.gate
    if host.current and host.current.gates:
        return ", ".join(host.current.gates)
    passed = [result for result in host.gates if result.passed and not result.waived]
    return f"{passed[-1].gate} passed" if passed else ""


def lines_of(event: Event, timeline: Timeline) -> Iterator[str]:
    """What a log without a table has of an event."""
    if isinstance(event, BatchBegun):
        region = f" of {event.region}" if event.region else ""
        yield f"batch {timeline.batches}{region}: {', '.join(event.hosts)}"
    elif isinstance(event, GateJudged) and not event.passed:
        figures = f" ({figures_text(event.figures)})" if event.figures else ""
        yield f"{event.host}: gate {event.gate} of instance {event.instance}: {event.why}{figures}"
    elif isinstance(event, Left):
        yield f"left as they are: {', '.join(event.hosts)}"
    elif isinstance(event, Outcome):
        host = timeline.hosts[event.host]
        starts = ", ".join(f"{name} started in {seconds:.1f} s" for name, seconds in sorted(event.seconds.items()))
        speed = f", {host.tokens_per_second:.1f} tokens/s" if host.tokens_per_second is not None else ""
        yield f"{event.host}: {event.state}{f' ({starts}{speed})' if starts else ''}"


class Lines:
    """Prints an event as lines, and says of other work only on request."""

    def __init__(self, *, with_output: bool) -> None:
        """Args: with_output: whether the output of Ansible is printed too."""
        self._with_output = with_output

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left to do."""

    def hear_event(self, event: Event, timeline: Timeline) -> None:
        """Prints it."""
        for line in lines_of(event, timeline):
            print_text(line)

    def hear_task(self, task: str) -> None:
        """Tasks are not told."""

    def hear_output(self, text: str) -> None:
        """Prints it if it is wanted."""
        if self._with_output:
            print_text(text)

    def hear_interrupt(self, text: str) -> None:
        """Prints it."""
        print_note(text)

    def look_on(self, timeline: Timeline) -> None:
        """Nothing moves here."""


class JsonLines(Lines):
    """Prints each event as a line of JSON, and nothing else on stdout."""

    def hear_event(self, event: Event, timeline: Timeline) -> None:
        """Prints it."""
        del timeline
        sys.stdout.write(event.model_dump_json() + "\n")
        sys.stdout.flush()


class LiveTable(Lines):
    """A table that follows the run, on a terminal."""

    def __init__(self, *, with_output: bool) -> None:
        """Args: with_output: whether the output of Ansible is printed too, above the table."""
        super().__init__(with_output=with_output)
        self._task = ""
        self._live: Live | None = None

    def __enter__(self) -> LiveTable:
        from rich.live import Live  # not before: without a terminal there is no table

        self._live = Live(refresh_per_second=4, transient=False)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last table on the terminal."""
        if self._live:
            self._live.stop()

    def hear_event(self, event: Event, timeline: Timeline) -> None:
        """The table shows it."""

    def hear_task(self, task: str) -> None:
        """Shown below the table."""
        self._task = task

    def hear_output(self, text: str) -> None:
        """Printed above the table if it is wanted."""
        if self._with_output and self._live:
            self._live.console.print(text, markup=False, highlight=False)

    def hear_interrupt(self, text: str) -> None:
        """Printed above the table."""
        if self._live:
            self._live.console.print(text, markup=False)

    def look_on(self, timeline: Timeline) -> None:
        """Draws the table anew."""
        if self._live:
            height = self._live.console.height
            self._live.update(make_table(timeline, time.time(), max(3, height - 8), self._task))


def make_table(timeline: Timeline, now: float, most: int, task: str) -> Table:
    """The table of a run.

    Args:
        timeline: what the run has done.
        now: the time, in seconds since 1970.
        most: how many rows there may be.
        task: what Ansible works on.
    """
    from rich.table import Table
    from rich.text import Text

    rows, more = make_rows(timeline, now, most)
    table = Table(
        caption=Text("\n".join(filter(None, (more, f"task: {task}" if task else "")))), caption_justify="left"
    )
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in ("batch", "seconds", "tokens/s") else "left")
    for row in rows:
        table.add_row(*map(Text, row), style=_STYLES.get(row[2]))
    return table


def print_end(timeline: Timeline, notes: Sequence[str]) -> None:
    """Prints how a run has ended: the refused hosts with gate, figures and log, then a line for all."""
    for host in timeline.refused:
        for line in describe_refused(host):
            print_text(line)
    print_text(timeline.summary)
    for note in notes:
        print_note(note)


def places(file: Path | None) -> dict[str, str | None]:
    """Where the record of a run and its report are."""
    page = file.with_suffix(".html") if file else None
    return {"record": str(file) if file else None, "report": str(page) if page and page.exists() else None}


def place_notes(file: Path | None) -> list[str]:
    """The same for people."""
    return [f"{kind}: {paths.display(Path(at))}" for kind, at in places(file).items() if at]


def print_result(timeline: Timeline, file: Path | None, error: FleetError | None) -> None:
    """Prints the last line of JSON.

    Args:
        timeline: what the run has done.
        file: its record.
        error: why it did not do what it was asked to; None if it did.

    Raises:
        typer.Exit: with the exit code of the error.
    """
    values = {
        **places(file),
        "exit_code": error.exit_code if error else 0,
        "error": error.record() if error else None,
    }
    sys.stdout.write(json.dumps(result_line(timeline, values)) + "\n")
    if error:
        raise typer.Exit(error.exit_code)


@contextmanager
def errors_as_result(*, json: bool) -> Iterator[None]:
    """With JSON, an error that comes before the first event is a line too: a reader of lines expects one each."""
    try:
        yield
    except FleetError as error:
        if not json:
            raise
        print_result(Timeline(), None, error)


def result_line(timeline: Timeline, values: dict[str, Any]) -> dict[str, Any]:
    """The last line of JSON: what has become of the hosts."""
    return {
        "event": "result",
        "accepted": [host.name for host in timeline.accepted],
        "refused": [host.name for host in timeline.refused],
        "left": [host.name for host in timeline.hosts.values() if host.left],
        **values,
    }
