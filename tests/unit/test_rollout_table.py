"""What a rollout shows while it runs: the rows of the table, the lines of a log, the last line of JSON."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from vllm_fleet.cli import app, rollout_table
from vllm_fleet.operate.rollout import record
from vllm_fleet.operate.rollout.record import Event
from vllm_fleet.operate.rollout.timeline import Timeline, describe_refused

RESULT: dict[str, Any] = {"instance": "0", "passed": True, "why": "", "lines": [], "figures": {}, "seconds": 1.0}
OUTCOME: dict[str, Any] = {
    **{"why": "", "gate": "", "log": [], "seconds": {"0": 2.0}, "changed": True},
    **{"before": {}, "results": [], "speed": None},
}


def event(at: float, name: str, **values: Any) -> Event:
    return record._EVENT.validate_python({"at": at, "event": name, **values})


def begun(*hosts: str) -> list[Event]:
    run = event(0, "run", owner="me", fleet="prod", kind="rollout", check=False, hosts=list(hosts))
    return [run, event(1, "batch", hosts=list(hosts[:1]))]


def gate(host: str, name: str, at: float = 5, **values: Any) -> Event:
    return event(at, "gate", **{**RESULT, "host": host, "gate": name, "waived": "", **values})


def outcome(host: str, state: str, at: float = 9, **values: Any) -> Event:
    return event(at, "outcome", **{**OUTCOME, "host": host, "state": state, **values})


def rows(*events: Event, now: float = 10, most: int = 50) -> list[tuple[str, ...]]:
    return rollout_table.make_rows(Timeline.read(events), now, most)[0]


def test_a_host_shows_its_phase_and_how_long_it_has_been_in_it() -> None:
    drains = event(4, "begin", host="a", phase="drain")
    assert rows(*begun("a", "b"), drains) == [("a", "1", "drain", "6", "", ""), ("b", "", "waits", "", "", "")]
    starts = [
        event(6, "end", host="a", phase="drain", seconds=2),
        event(7, "begin", host="a", phase="start", instance="1"),
    ]
    assert rows(*begun("a"), drains, *starts) == [("a", "1", "start 1", "3", "", "")]


def test_a_host_shows_the_gates_that_are_asked_and_what_speed_has_measured() -> None:
    asked = event(4, "begin", host="a", phase="gates", gates=["completion", "stream"])
    assert rows(*begun("a"), asked)[0][-1] == "completion, stream"
    ended = event(5, "end", host="a", phase="gates", seconds=1)
    measured = gate("a", "speed", figures={"tokens_per_second": 1234.56})
    assert rows(*begun("a"), asked, ended, measured)[0][-2:] == ("1234.6", "speed passed")
    assert rows(*begun("a"), measured, outcome("a", "returned", gate="tools"))[0][-1] == "tools"


def test_of_more_hosts_than_rows_those_at_work_and_the_refused_have_one() -> None:
    names = [f"h{number:03d}" for number in range(100)]
    events = [
        *begun(*names),
        event(1, "batch", hosts=names[1:4]),
        outcome("h000", "serving"),
        outcome("h002", "returned"),
    ]
    timeline = Timeline.read([*events, event(9, "begin", host="h003", phase="drain")])
    shown, more = rollout_table.make_rows(timeline, 10, 3)
    assert {row[0] for row in shown} == {"h001", "h002", "h003"}
    assert more == "and 96 waits, 1 serving"


def test_what_a_refused_canary_kept_from_beginning_is_left_and_waits_no_more() -> None:
    refused = [outcome("a", "returned", gate="tools"), event(9, "ended", state="refused", why="the gate tools")]
    assert [row[2] for row in rows(*begun("a", "b"), *refused)] == ["returned", "left"]


def test_a_log_has_batches_outcomes_and_the_gate_that_refuses() -> None:
    timeline = Timeline()
    lines = []
    for each in [
        *begun("a"),
        gate("a", "completion"),
        gate("a", "speed", passed=False, why="too slow", figures={"tokens_per_second": 80.0}),
        outcome("a", "returned", gate="speed", why="too slow"),
        event(9, "left", hosts=["b"]),
    ]:
        timeline.add(each)
        lines += list(rollout_table.lines_of(each, timeline))
    assert lines == [
        "batch 1: a",
        "a: gate speed of instance 0: too slow (tokens_per_second 80)",
        "a: returned (0 started in 2.0 s, 80.0 tokens/s)",
        "left as they are: b",
    ]


def test_a_refused_host_is_told_with_gate_figures_and_log() -> None:
    refused = gate("a", "speed", passed=False, why="too slow", figures={"slower": 0.2})
    timeline = Timeline.read([*begun("a"), refused, outcome("a", "returned", gate="speed", why="slow", log=["a line"])])
    assert describe_refused(timeline.hosts["a"]) == [
        "a serves its last good release, since the new one was refused at the gate speed: slow",
        "  speed: slower 0.2",
        "  a line",
    ]
    assert describe_refused(Timeline.read(begun("b")).hosts["b"]) == []


def test_the_summary_counts_what_became_of_the_hosts() -> None:
    events = [*begun("a", "b", "c"), outcome("a", "serving"), outcome("b", "failed"), event(9, "left", hosts=["c"])]
    told = "1 of 3 hosts serve the release, 1 does not, 1 is left as it is"
    assert Timeline.read(events).summary == f"{told}, the run has not ended"
    assert Timeline.read([*events, event(10, "ended", state="refused")]).summary == told
    checked = event(0, "run", owner="me", fleet="prod", kind="rollout", check=True, hosts=["a"])
    assert Timeline.read([checked, outcome("a", "rolling")]).summary == "1 of 1 hosts would change"


def test_requests_are_counted_over_a_batch_also_where_haproxy_began_anew() -> None:
    def counted(at: float, ends: bool, value: int, gateway: str = "g") -> Event:
        return event(at, "counted", gateway=gateway, batch_ends=ends, backends={"m": {"hrsp_5xx": value}})

    counts = [counted(1, False, 5), counted(2, True, 7), counted(3, False, 9), counted(4, True, 1)]
    lost = Timeline.read([*begun("a"), *counts, counted(5, True, 3, "other")]).lost
    assert lost == {("g", "m"): {"hrsp_5xx": 3}}


def test_the_table_shows_a_name_as_it_is() -> None:
    timeline = Timeline.read([*begun("a"), event(2, "begin", host="a", phase="[red]x[/red]")])
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(rollout_table.make_table(timeline, 10, 5, "Install [it]"))
    text = console.export_text()
    assert "[red]x[/red]" in text
    assert "task: Install [it]" in text


def test_the_last_line_of_json_names_the_hosts() -> None:
    timeline = Timeline.read([*begun("a", "b"), outcome("a", "serving"), event(9, "left", hosts=["b"])])
    line = rollout_table.result_line(timeline, {"exit_code": 0})
    assert line == {"event": "result", "accepted": ["a"], "refused": [], "left": ["b"], "exit_code": 0}


@pytest.mark.parametrize("command", ["rollout", "rollback"])
def test_an_error_before_the_first_event_is_a_line_of_json_too(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--fleet", "nope", "--json"])
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert (found["event"], found["exit_code"], done.exit_code) == ("result", 2, 2)
    assert found["error"]["message"] == "there is no fleet 'nope'"
