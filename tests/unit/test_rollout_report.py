"""The report of a rollout: what a browser shows of it, for one host and for many, with text of hostile hosts."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import BROWSER, LEFT_OUT
from hanging import HANGING_SECONDS
from typer.testing import CliRunner

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.cli import app
from vllm_fleet.operate.rollout import record, report
from vllm_fleet.operate.rollout.record import Record
from vllm_fleet.operate.rollout.timeline import Timeline
from vllm_fleet.schema.gates import GATES

EVIL = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
PHASES = ("begin", "room", "drain", "measure", "stop", "start", "gates", "accept", "ready")


class Clock:
    """The time of the events, which a test sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now


def write_run(file: Path, clock: Clock, names: list[str], *, refused: str = "", text: str = "a line") -> None:
    """A whole rollout: the first host alone, then the others in batches of ten."""
    out = Record(dict.fromkeys(names, file))
    out.write("run", owner="ops@controller", fleet="prod", kind="rollout", check=False, hosts=names)
    batches = [names[:1], *(names[at : at + 10] for at in range(1, len(names), 10))]
    for batch in batches:
        out.write("batch", hosts=batch)
        for gateway in ("gateway-0", "gateway-1"):
            counts = {"hrsp_5xx": 3, "srv_abrt": 0, "eresp": 0, "econ": 0, "wretr": 1}
            out.write("counted", gateway=gateway, batch_ends=False, backends={"gpt-oss-120b": counts})
        start = clock.now
        for number, name in enumerate(batch):
            clock.now = start + number
            write_host(out, clock, name, "speed" if name == refused else "", text)
        for gateway in ("gateway-0", "gateway-1"):
            counts = {"hrsp_5xx": 3, "srv_abrt": 0, "eresp": 0, "econ": 0, "wretr": 3}
            out.write("counted", gateway=gateway, batch_ends=True, backends={"gpt-oss-120b": counts})
        if refused in batch:
            break
    out.write("ended", state="refused" if refused else "done", why="")


def write_host(out: Record, clock: Clock, name: str, refuses: str, text: str) -> None:
    lines = ["--- 0.yaml", "+++ 0.yaml", "@@ -7 +7 @@", "-max-num-seqs: 128", f"+max-num-seqs: 256 # {text}"]
    out.write("release", host=name, old="a" * 16, new="b" * 16, lines=lines)
    for phase in PHASES[: 7 if refuses else None]:
        out.write("begin", host=name, phase=phase, instance="0" if phase == "start" else "")
        clock.now += {"start": 95.0, "drain": 31.0, "gates": 42.0}.get(phase, 2.0)
        out.write("end", host=name, phase=phase, instance="0" if phase == "start" else "", seconds=2.0)
    steps = {"weights_seconds": 41.26, "kv_cache_tokens": 1525201.0}
    out.write("started", host=name, instance="0", seconds=95.0, steps=steps)
    for gate in GATES:
        passed = gate != refuses
        figures: dict[str, Any] = {"tokens_per_second": 4211.5, "slower": 0.01} if gate == "speed" else {}
        result = {"gate": gate, "instance": "0", "figures": figures, "seconds": 1.2, "waived": "", "lines": []}
        out.write("gate", host=name, **result, passed=passed, why="" if passed else f"20 % fewer tokens {text}")
        if not passed:
            break
    outcome: dict[str, Any] = {"seconds": {"0": 95.0}, "changed": True, "before": {}, "results": [], "speed": None}
    state = "returned" if refuses else "serving"
    log = [f"ERROR {text}"] if refuses else []
    out.write(
        "outcome", host=name, state=state, why=f"slow {text}" if refuses else "", gate=refuses, log=log, **outcome
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(record.time, "time", made.time)
    return made


class _Shown(HTMLParser):
    """The text of each section of a page, its tags, and its title."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.tags: list[str] = []
        self._section, self._tag = "", ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._tag = tag
        if tag in ("section", "p") and (name := dict(attrs).get("id")):
            self._section = name
        elif tag == "title" and self._section == "":
            self._section = "title"

    def handle_data(self, data: str) -> None:
        if self._tag != "style":
            self.texts[self._section] = self.texts.get(self._section, "") + data


def opened(page: Path) -> _Shown:
    """What a browser shows of a page."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed (on Debian: apt install chromium)")
    words = [BROWSER, "--headless=new", f"--user-data-dir={page.parent}/profile", "--virtual-time-budget=5000"]
    words += [f"--{name}" for name in LEFT_OUT] + ["--no-sandbox"] * (os.geteuid() == 0)
    done = subprocess.run(
        [*words, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=HANGING_SECONDS
    )
    assert done.returncode == 0, done.stderr
    shown = _Shown()
    shown.feed(done.stdout)
    return shown


def test_a_browser_shows_phases_gates_figures_counts_and_changes(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "x.jsonl"
    write_run(file, clock, ["h100-0", "h100-1"])
    page = report.write_report(file)
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    shown = opened(page)
    assert shown.texts["summary"].startswith("2 of 2 hosts serve the release")
    assert "refused" not in shown.texts
    assert shown.tags.count("rect") == 2 * len(PHASES)
    assert "h100-0: start 0 95.0 s" in shown.texts["waterfall"]
    assert re.search(r"h100-1\s*0\s*95\.0 s\s*41\.3 s\s*1,525,201", shown.texts["starts"])
    assert "graphs" not in shown.texts["starts"], "no start has logged it"
    assert "tokens_per_second 4211.5" in shown.texts["hosts"]
    assert re.search(r"gateway-0\s*gpt-oss-120b\s*0\s*0\s*0\s*0\s*4", shown.texts["lost"])
    assert "+max-num-seqs: 256" in shown.texts["changes"]
    assert "2 hosts" in shown.texts["changes"], "an equal change is shown once"


def test_text_of_hosts_is_inert(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "x.jsonl"
    write_run(file, clock, ["a", f"b{EVIL}"], refused="a", text=EVIL)
    page = report.write_report(file)
    shown = opened(page)
    assert "taken" not in shown.texts["title"]
    assert not {"script", "img"} & set(shown.tags)
    assert f"ERROR {EVIL}" in shown.texts["refused"]
    assert EVIL in shown.texts["changes"]
    assert "default-src 'none'" in page.read_text()
    assert not re.search(r'(src|href)="', page.read_text())


def test_a_refused_host_is_first_with_its_gate_and_log(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "x.jsonl"
    write_run(file, clock, ["h100-0", "h100-1"], refused="h100-0")
    text = report.html(Timeline.read(record.read_record(file)))
    assert "since the new one was refused at the gate speed: slow a line" in text
    assert text.index('id="refused"') < text.index('id="waterfall"')
    assert "1 does not" in text


def test_a_hundred_hosts_have_a_row_each(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "x.jsonl"
    names = [f"h100-{number}" for number in range(100)]
    write_run(file, clock, names)
    shown = opened(report.write_report(file))
    assert all(f"{name}: drain" in shown.texts["waterfall"] for name in names)
    assert shown.texts["hosts"].count("serving") == 100


def test_a_run_that_was_killed_has_a_report_too(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "x.jsonl"
    out = Record({"a": file})
    out.write("run", owner="me", fleet="prod", kind="rollout", check=False, hosts=["a"])
    out.write("begin", host="a", phase="drain")
    clock.now += 5
    out.write("batch", hosts=["a"])
    text = report.html(Timeline.read(record.read_record(file)))
    assert "the run has not ended" in text
    assert "No gateway was counted both before and after a batch" in text


def test_the_end_of_a_run_does_not_fail_for_its_report(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "x.jsonl"
    write_run(file, clock, ["a"])
    file.with_suffix(".html").mkdir()
    (fault,) = report.write_reports(Record({"a": file, "b": file}))
    assert "x.html" in fault
    broken = tmp_path / "y.jsonl"
    broken.write_text("")
    assert "is no record of a rollout" in report.write_reports(Record({"a": broken}))[0]


def test_the_command_writes_the_report_of_an_earlier_run(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "run_dir", lambda fleet: tmp_path / fleet)

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["rollout-report", *words])

    none = run().exception
    assert isinstance(none, FleetError)
    assert "has no record of a rollout" in none.message
    folder = record.folder("lab")
    folder.mkdir(parents=True)
    write_run(folder / "1.jsonl", clock, ["a"])
    write_run(folder / "2.jsonl", clock, ["a"], refused="a")
    assert run("--list").output.splitlines() == [
        "2  0 of 1 hosts serve the release, 1 does not",
        "1  1 of 1 hosts serve the release",
    ]
    assert '"run": "2"' in run("--list", "--json").output
    assert run().exit_code == 0
    assert (folder / "2.html").is_file()
    assert "1.html" in run("--run", "1", "--json").output
    wrong = run("--run", "3").exception
    assert isinstance(wrong, FleetError)
    assert (wrong.exit_code, "no rollout is named '3'" in wrong.message) == (2, True)
