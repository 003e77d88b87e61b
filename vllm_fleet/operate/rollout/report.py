"""The record of a rollout as one HTML file that a browser opens without a server, a script or a network."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import FleetError
from vllm_fleet.operate.rollout.record import GateJudged, Record, read_record
from vllm_fleet.operate.rollout.timeline import COUNTED, HostLine, Timeline, describe_refused, figures_text
from vllm_fleet.schema.gates import GATES

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>%TITLE%</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --good: #1a7f37; --bad: #b3261e; --mild: #9a6700;
  --begin: #8c959f; --room: #bf8700; --drain: #d4a72c; --measure: #8250df; --stop: #6e7781; --start: #0969da;
  --gates: #2da44e; --accept: #1b7c83; --ready: #3fb8af; --back: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --bad: #ff8078; --mild: #d4a72c; --start: #58a6ff;
  --measure: #a371f7; --back: #ff6b64; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .3rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
.about { color: GrayText; margin: .2rem 0; }
.good { color: var(--good); } .bad { color: var(--bad); } .mild { color: var(--mild); }
table { border-collapse: collapse; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top; }
th { font-size: .85rem; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td small { color: GrayText; display: block; max-width: 16rem; }
pre { background: var(--soft); border-radius: 6px; font: 13px/1.45 ui-monospace, monospace; margin: .4rem 0;
  max-height: 32rem; overflow: auto; padding: .6rem .8rem; }
.plus { color: var(--good); } .minus { color: var(--bad); }
.scroll { overflow-x: auto; }
svg { display: block; min-width: 44rem; width: 100%; } svg text { fill: CanvasText; font: 12px system-ui, sans-serif; }
svg .axis { stroke: var(--line); } svg .mark { fill: GrayText; font-size: 11px; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1rem; font-size: .85rem; margin: .4rem 0; }
.legend i { border-radius: 2px; display: inline-block; height: .7em; margin-right: .35em; width: .9em; }
%COLOURS%
</style>
</head>
<body>
%BODY%
</body>
</html>
"""
#: The steps of a host, as the waterfall colours and names them.
_PHASES = {
    "begin": "writes the release",
    "room": "waits for room",
    "drain": "drains",
    "measure": "measures the old release",
    "stop": "stops",
    "restore": "copies the start cache",
    "start": "starts",
    "gates": "passes gates",
    "keep": "keeps the start cache",
    "accept": "accepts",
    "ready": "gets traffic",
    "back": "goes back",
}
#: What a start has logged -> what the report calls it; the engine's time has that of compilation and graphs in it.
_STEPS = {
    "weights_seconds": "weights read",
    "load_seconds": "model loaded",
    "compilation_seconds": "compilation",
    "graphs_seconds": "graphs captured",
    "engine_seconds": "engine ready, in all",
    "kv_cache_tokens": "KV cache, tokens",
}
_LABEL, _WIDTH, _ROW, _TOP = 170, 1100, 20, 22
_STATES = {"serving": "good", "returned": "bad", "failed": "bad", "untouched": "bad"}


def write_report(file: Path) -> Path:
    """Writes the report of a record beside it.

    Args:
        file: the record.

    Returns:
        The page.

    Raises:
        FleetError: it is no record.
    """
    page = file.with_suffix(".html")
    write_atomically(page, html(Timeline.read(read_record(file))), 0o600)
    return page


def write_reports(record: Record) -> list[str]:
    """Writes the report of each file of a record, at the end of a run.

    Returns:
        Why a report could not be written. The run has ended, so it is no error of the run.
    """
    faults = []
    for file in dict.fromkeys(record.files.values()):
        try:
            write_report(file)
        except FleetError as fault:
            faults.append(str(fault))
        except OSError as fault:
            faults.append(f"{file.with_suffix('.html')} cannot be written: {fault.strerror}")
    return faults


def html(timeline: Timeline) -> str:
    """The page. All text of hosts is escaped.

    Args:
        timeline: what the run has done.
    """
    colours = "\n".join(
        f"svg .{name} {{ fill: var(--{name}); }} .legend .{name} {{ background: var(--{name}); }}" for name in _PHASES
    )
    run = timeline.run
    title = escape(f"{run.kind.capitalize()} of {run.fleet}, {_date(run.at)}") if run else "Rollout"
    parts = [*_head(timeline, title), *_refused(timeline), *_lost(timeline), *_waterfall(timeline)]
    body = "\n".join([*parts, *_starts(timeline), *_gates(timeline), *_changes(timeline)])
    return _PAGE.replace("%TITLE%", title).replace("%COLOURS%", colours).replace("%BODY%", body)


def _date(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _head(timeline: Timeline, title: str) -> Iterator[str]:
    ended, run = timeline.ended, timeline.run
    style = "good" if ended and ended.state == "done" else "bad" if ended and ended.state == "refused" else "mild"
    yield f"<h1>{title}</h1>"
    yield f'<p id="summary"><b class="{style}">{escape(timeline.summary)}</b></p>'
    if run:
        check = ", a check that changes nothing" if run.check else ""
        yield f'<p class="about">By {escape(run.owner)}, {_seconds(timeline.at - run.at)}{check}.</p>'


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _refused(timeline: Timeline) -> Iterator[str]:
    if not timeline.refused:
        return
    yield '<section id="refused"><h2>Hosts that do not serve the release</h2>'
    for host in timeline.refused:
        first, *rest = describe_refused(host)
        yield f'<h3 class="bad">{escape(first)}</h3>'
        if rest:
            lines = "\n".join(line.removeprefix("  ") for line in rest)
            yield f"<pre>{escape(lines)}</pre>"
    yield "</section>"


def _in_order(timeline: Timeline) -> list[HostLine]:
    return sorted(timeline.hosts.values(), key=lambda host: (not host.batch, host.batch))


def _waterfall(timeline: Timeline) -> Iterator[str]:
    hosts = [host for host in _in_order(timeline) if host.spans]
    if not hosts:
        return
    start = min(host.spans[0].begin for host in hosts)
    length = max(timeline.at - start, 0.001)
    scale = (_WIDTH - _LABEL - 10) / length
    height = _TOP + _ROW * len(hosts) + 4
    yield '<section id="waterfall"><h2>Phases</h2><div class="legend">'
    used = {span.phase for host in hosts for span in host.spans}
    yield from (f'<span><i class="{name}"></i>{told}</span>' for name, told in _PHASES.items() if name in used)
    yield f'</div><div class="scroll"><svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="Phases of each host">'
    for number in range(6):
        at = _LABEL + (_WIDTH - _LABEL - 10) * number / 5
        anchor = "end" if number == 5 else "middle"
        yield f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 4}" y2="{height}"/>'
        mark = _mark(length * number / 5, length)
        yield f'<text class="mark" x="{at:.1f}" y="12" text-anchor="{anchor}">{mark}</text>'
    for row, host in enumerate(hosts):
        top = _TOP + _ROW * row
        shown = host.name if len(host.name) <= 22 else f"{host.name[:21]}…"
        yield f'<text x="0" y="{top + 14}">{escape(shown)}</text>'
        for span in host.spans:
            x, width = _LABEL + (span.begin - start) * scale, max(span.seconds(timeline.at) * scale, 1.5)
            phase = span.phase if span.phase in _PHASES else "begin"
            detail = " ".join([span.phase, span.instance, *span.gates, _seconds(span.seconds(timeline.at))])
            told = f"{host.name}: {detail}{', failed' if span.failed else ''}"
            yield (
                f'<rect class="{phase}" x="{x:.1f}" y="{top + 3}" width="{width:.1f}" height="{_ROW - 6}" rx="2">'
                f"<title>{escape(told)}</title></rect>"
            )
    yield "</svg></div></section>"


def _mark(seconds: float, length: float) -> str:
    """A time on the axis; all of an axis have the same unit."""
    return f"{seconds:.0f} s" if length < 120 else f"{seconds / 60:.1f} min"


def _lost(timeline: Timeline) -> Iterator[str]:
    yield '<section id="lost"><h2>Requests that went wrong, as the gateways counted</h2>'
    if not timeline.lost:
        yield "<p>No gateway was counted both before and after a batch.</p></section>"
        return
    yield "<table><thead><tr><th>gateway</th><th>backend</th>"
    yield "".join(f'<th class="number">{told}</th>' for told in COUNTED.values()) + "</tr></thead><tbody>"
    for (gateway, backend), figures in sorted(timeline.lost.items()):
        cells = "".join(
            f'<td class="number{" bad" if figures.get(name) and name != "wretr" else ""}">{figures.get(name, 0)}</td>'
            for name in COUNTED
        )
        yield f"<tr><td>{escape(gateway)}</td><td>{escape(backend)}</td>{cells}</tr>"
    yield "</tbody></table></section>"


def _starts(timeline: Timeline) -> Iterator[str]:
    """How long each start took, and what vLLM has logged of its steps."""
    starts = [start for host in _in_order(timeline) for start in host.starts]
    if not starts:
        return
    known = [name for name in _STEPS if any(name in start.steps for start in starts)]
    yield '<section id="starts"><h2>Starts</h2><div class="scroll"><table><thead><tr><th>host</th><th>instance</th>'
    yield "".join(f'<th class="number">{told}</th>' for told in ("first completion", *map(_STEPS.__getitem__, known)))
    yield "</tr></thead><tbody>"
    for start in starts:
        yield f"<tr><td>{escape(start.host)}</td><td>{escape(start.instance)}</td>"
        yield f'<td class="number">{_seconds(start.seconds)}</td>'
        yield "".join(f'<td class="number">{_step(name, start.steps.get(name))}</td>' for name in known) + "</tr>"
    yield "</tbody></table></div></section>"


def _step(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return _seconds(value) if name.endswith("_seconds") else f"{value:,.0f}"


def _gates(timeline: Timeline) -> Iterator[str]:
    hosts = _in_order(timeline)
    asked = [gate for gate in GATES if any(result.gate == gate for host in hosts for result in host.gates)]
    yield '<section id="hosts"><h2>Hosts and gates</h2><div class="scroll"><table><thead><tr>'
    yield '<th>host</th><th class="number">batch</th><th>outcome</th><th class="number">starts</th>'
    yield "".join(f"<th>{gate}</th>" for gate in asked) + "</tr></thead><tbody>"
    for host in hosts:
        seconds = host.outcome.seconds if host.outcome else {}
        starts = "<br>".join(_seconds(each) for _, each in sorted(seconds.items()))
        yield (
            f'<tr><td>{escape(host.name)}</td><td class="number">{host.batch or ""}</td>'
            f'<td class="{_STATES.get(host.state, "mild")}">{escape(host.state)}</td><td class="number">{starts}</td>'
        )
        for gate in asked:
            yield f"<td>{_cell([result for result in host.gates if result.gate == gate])}</td>"
        yield "</tr>"
    yield "</tbody></table></div></section>"


def _cell(results: Sequence[GateJudged]) -> str:
    parts = []
    for result in results:
        word, style = ("passed", "good") if result.passed else ("refused", "bad")
        if result.waived:
            word, style = "waived", "mild"
        detail = result.waived or result.why or figures_text(result.figures)
        instance = f" {result.instance}" if len(results) > 1 else ""
        small = f"<small>{escape(detail)}</small>" if detail else ""
        parts.append(f'<span class="{style}">{word}{escape(instance)}</span>{small}')
    return "".join(parts)


def _changes(timeline: Timeline) -> Iterator[str]:
    """The diffs of the release's files, each once with the hosts that have it."""
    by_diff: dict[tuple[str, ...], list[HostLine]] = {}
    for host in _in_order(timeline):
        if host.change:
            by_diff.setdefault(tuple(host.change.lines), []).append(host)
    if not by_diff:
        return
    yield '<section id="changes"><h2>What changed in the release</h2>'
    for lines, hosts in by_diff.items():
        names = ", ".join(host.name for host in hosts)
        yield f'<h3>{len(hosts)} host{"s" if len(hosts) > 1 else ""}</h3><p class="about">{escape(names)}</p>'
        if lines:
            yield f"<pre>{chr(10).join(map(_line, lines))}</pre>"
        else:
            yield "<p>The first release of these hosts, or one with the same files.</p>"
    yield "</section>"


def _line(line: str) -> str:
    style = {"+": "plus", "-": "minus"}.get(line[:1], "")
    return f'<span class="{style}">{escape(line)}</span>' if style else escape(line)
